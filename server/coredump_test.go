package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// keeperMain is a process with something to hide, which waits to be killed. With the argument "open" it does not protect itself.
func keeperMain() {
	if len(os.Args) < 2 {
		if err := forbidCoreDumps(); err != nil {
			panic(err)
		}
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// startKeeper starts one in a folder of its own, with core files as large as may be, as an unprivileged user when the test is
// root's.
func startKeeper(t *testing.T, args ...string) (cmd *exec.Cmd, dir string) {
	t.Helper()
	dir = t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	// The shell raises the soft limit as far as the hard one lets it.
	program, err := exec.LookPath("keeper")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "keeper")
	if err := copyProgram(program, copied); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command("sh", append([]string{"-c", `ulimit -S -c "$(ulimit -H -c)"; exec "$0" "$@"`, copied}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOTRACEBACK=crash", "SECRET=of the environment")
	cmd.SysProcAttr = asNobody()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the keeper said %q, %v", line, err)
	}
	return cmd, dir
}

// copyProgram copies what a link leads to, to where an unprivileged user can run it.
func copyProgram(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	if closed := w.Close(); err == nil {
		err = closed
	}
	return err
}

// asNobody is the user that a root's test becomes, so that what it may do is what any user may.
func asNobody() *syscall.SysProcAttr {
	if os.Getuid() != 0 {
		return nil
	}
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
}

// readable reports whether another process of the same user can open a file under the process's /proc.
func readable(t *testing.T, pid int, name string) bool {
	t.Helper()
	cmd := exec.Command("sh", "-c", `exec 3<"$0"`, fmt.Sprintf("/proc/%d/%s", pid, name))
	cmd.SysProcAttr = asNobody()
	return cmd.Run() == nil
}

func onLinux(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("core files are the operator's affair here")
	}
}

// TestNoCoreDumps kills protected processes with the signals that make core files, and looks for one; the unprotected process
// beside them shows that the machine would make one.
func TestNoCoreDumps(t *testing.T) {
	onLinux(t)
	kill := func(signal syscall.Signal, args ...string) (dumped bool) {
		cmd, dir := startKeeper(t, args...)
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		if !status.Signaled() {
			t.Errorf("%v: the process ended with %v", signal, cmd.ProcessState)
		}
		cores, err := filepath.Glob(filepath.Join(dir, "*core*"))
		if err != nil {
			t.Fatal(err)
		}
		return status.CoreDump() || len(cores) > 0
	}
	for _, signal := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGSEGV} {
		if kill(signal) {
			t.Errorf("%v left a core file", signal)
		}
	}
	if !kill(syscall.SIGABRT, "open") {
		t.Log("this machine makes no core files at all: nothing was shown")
	}
}

// TestMemoryIsPrivate reads a protected process's memory and environment as another process of the same user.
func TestMemoryIsPrivate(t *testing.T) {
	onLinux(t)
	closed, _ := startKeeper(t)
	open, _ := startKeeper(t, "open")
	for _, name := range []string{"mem", "environ", "maps"} {
		if readable(t, closed.Process.Pid, name) {
			t.Errorf("another process can read %s", name)
		}
		if !readable(t, open.Process.Pid, name) {
			t.Logf("%s of an unprotected process cannot be read either (ptrace_scope): nothing was shown", name)
		}
	}
}

// TestDemoForbidsCoreDumps holds that the program does what the tests above show the effect of.
func TestDemoForbidsCoreDumps(t *testing.T) {
	onLinux(t)
	d := demoShared(t)
	proc := fmt.Sprintf("/proc/%d/", d.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "limits")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(limits)) {
		if name, rest, ok := strings.Cut(line, "core file size"); ok && strings.TrimSpace(name) == "Max" {
			if f := strings.Fields(rest); len(f) < 2 || f[0] != "0" || f[1] != "0" {
				t.Errorf("core file size is limited to %q", rest)
			}
		}
	}
	// Files of a process that is not dumpable are root's, whoever runs it.
	if os.Getuid() != 0 {
		if _, err := os.ReadFile(proc + "environ"); err == nil {
			t.Error("the demo is dumpable")
		}
	}
}
