package demo

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
)

// process is a started child.
type process struct {
	pid  int
	done chan struct{} // closed when it was waited for
}

// startProcess starts cmd so that the kernel stops it (SIGINT, PostgreSQL's fast shutdown) when this process dies, even by
// kill -9. The kernel watches the thread that started the child and not the process, hence a goroutine that keeps one. The
// child is in its own process group: a Ctrl-C is for us, who stop the database last.
func startProcess(cmd *exec.Cmd, credential *syscall.Credential) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Pdeathsig: syscall.SIGINT, Setpgid: true}
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
		}
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in its log
			close(p.done)
		}
	}()
	return p, <-started
}

// workers lists the processes that work on a data directory, sorted. All of PostgreSQL's have it as their current
// directory, and their program is called postgres.
func workers(data string) ([]int, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		at, err := os.Readlink(filepath.Join("/proc", name, "cwd"))
		if err != nil || at != data {
			continue // another user's, or just ended
		}
		program, err := os.Readlink(filepath.Join("/proc", name, "exe"))
		if err != nil && !errors.Is(err, os.ErrPermission) {
			continue
		}
		if filepath.Base(program) == "postgres" || filepath.Base(program) == "postgres (deleted)" {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}
