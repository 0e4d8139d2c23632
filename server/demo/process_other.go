//go:build unix && !linux

package demo

import (
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// process is a started child.
type process struct {
	pid  int
	done chan struct{} // closed when it was waited for
}

// startProcess starts cmd in its own process group: a Ctrl-C is for us, who stop the database last. No kernel but Linux's
// stops it when we are killed; the next start does.
func startProcess(cmd *exec.Cmd, credential *syscall.Credential) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	return p, nil
}

// workers lists the server that was started on a data directory. Its workers end with it.
func workers(data string) ([]int, error) {
	out, err := exec.Command("ps", "-axo", "pid=,command=").Output()
	if err != nil {
		return nil, fmt.Errorf("running ps: %w", err)
	}
	var pids []int
	for line := range strings.Lines(string(out)) {
		number, command, _ := strings.Cut(strings.TrimSpace(line), " ")
		if pid, err := strconv.Atoi(number); err == nil && strings.HasSuffix(command, "postgres -D "+data) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}
