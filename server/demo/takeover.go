package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// takeOver makes sure that no process works on the data directory any more: what a killed chartkeep left behind is asked to
// stop, then told to, then killed. Our lock is held, so none of them belongs to a living chartkeep. Only when all are gone is
// a stale pid file removed: PostgreSQL would refuse to start if its number were in use by another program by now.
func takeOver(data string, say func(string, ...any)) error {
	steps := []struct {
		signal syscall.Signal
		wait   time.Duration
	}{
		{syscall.SIGINT, fastTimeout}, // fast: sessions are ended, a checkpoint is written
		{syscall.SIGQUIT, 3 * time.Second},
		{syscall.SIGKILL, 3 * time.Second},
	}
	for i, step := range steps {
		pids, err := workers(data)
		if err != nil {
			return fmt.Errorf("looking for what an earlier run left behind: %w", err)
		}
		if len(pids) == 0 {
			break
		}
		if i == 0 {
			say("Stopping the PostgreSQL that an earlier run left behind (process %d)", pids[0])
		}
		// Workers without their postmaster end by themselves; a signal is for those that do not, and for the postmaster.
		if main, _ := postmaster(data); step.signal != syscall.SIGKILL && slices.Contains(pids, main) {
			pids = []int{main}
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, step.signal); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("stopping process %d that an earlier run left behind: %w", pid, err)
			}
		}
		for deadline := time.Now().Add(step.wait); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if pids, err = workers(data); err == nil && len(pids) == 0 {
				break
			}
		}
	}
	if pids, err := workers(data); err != nil || len(pids) > 0 {
		return fmt.Errorf("processes %v still work on %s", pids, data)
	}
	err := os.Remove(filepath.Join(data, "postmaster.pid"))
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}
