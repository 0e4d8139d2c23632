package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/chartkeep/chartkeep/auth"
)

// logoff are the settings of automatic logoff (45 CFR 164.312(a)(2)(iii)) by role: the strictest of a caller's roles counts, and "*" for
// roles that are not named.
type logoff struct {
	IdleLimit    map[string]time.Duration `help:"After how long without a request a session is over until its person signs in again, by role; * is every role that is not named, 0s is never." default:"*=15m;backend=0s" mapsep:";" placeholder:"ROLE=DURATION;…"`
	SessionLimit map[string]time.Duration `help:"How long a session may go on after its sign-in, by role; likewise." default:"*=12h;backend=0s" mapsep:";" placeholder:"ROLE=DURATION;…"`
}

// demoLogoff is the same for a demo, where nobody's screen is in a ward.
type demoLogoff struct {
	IdleLimit    map[string]time.Duration `help:"After how long without a request a session is over, by role (see serve --help)." default:"*=8h;backend=0s" mapsep:";" placeholder:"ROLE=DURATION;…"`
	SessionLimit map[string]time.Duration `help:"How long a session may go on after its sign-in, by role." default:"*=720h;backend=0s" mapsep:";" placeholder:"ROLE=DURATION;…"`
}

// byRole are the limits of sessions by role. Who is named in one setting only has the other from "*".
func (l *logoff) byRole() (map[string]auth.SessionLimit, error) {
	all := map[string]auth.SessionLimit{}
	of := func(set map[string]time.Duration, role string) time.Duration {
		if d, ok := set[role]; ok {
			return d
		}
		return set[auth.AnyRole]
	}
	for name, set := range map[string]map[string]time.Duration{"--idle-limit": l.IdleLimit, "--session-limit": l.SessionLimit} {
		for role, d := range set {
			if role == "" || d < 0 || d > 0 && d < time.Second {
				return nil, usage("%s %s=%s: a role and a duration of a second at least, or 0s", name, role, d)
			}
			all[role] = auth.SessionLimit{Idle: of(l.IdleLimit, role), Longest: of(l.SessionLimit, role)}
		}
	}
	return all, nil
}

// instanceName tells the processes of a deployment apart for those who look at sessions.
func instanceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// dropOver is the housekeeping of revocations and sessions. Each instance does it: what is gone is gone.
func (r *rooms) dropOver(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := r.db.Sessions().DropOver(ctx); err != nil && ctx.Err() == nil {
				r.logger.Warn("revocations and sessions that are over were not dropped", "error", err)
			}
		case <-ctx.Done():
			return nil
		}
	}
}
