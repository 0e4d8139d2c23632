package demo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// owner is the user who runs PostgreSQL. PostgreSQL refuses to be root, so root needs somebody else.
type owner struct {
	name       string
	credential *syscall.Credential // nil: this process's own user
}

// ownerOf picks the owner: this process's user; for root the owner of an existing cluster, else user postgres, else nobody,
// else a new system user chartkeep.
func ownerOf(ctx context.Context, data string, say func(string, ...any)) (*owner, error) {
	if os.Geteuid() != 0 {
		return &owner{}, nil
	}
	if info, err := os.Stat(data); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
			return &owner{
				name:       strconv.Itoa(int(st.Uid)),
				credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid},
			}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			return asUser(u)
		}
	}
	say("Making the system user chartkeep, because PostgreSQL does not run as root")
	if out, err := exec.CommandContext(ctx, "useradd", "--system", "--no-create-home", "--shell", "/bin/false", "chartkeep").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("PostgreSQL does not run as root, and no other user can be made (useradd: %w: %s)", err, out)
	}
	u, err := user.Lookup("chartkeep")
	if err != nil {
		return nil, err
	}
	return asUser(u)
}

func asUser(u *user.User) (*owner, error) {
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	return &owner{name: u.Username, credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, nil
}

// take gives a file or folder to the owner.
func (o *owner) take(path string) error {
	if o.credential == nil {
		return nil
	}
	return os.Chown(path, int(o.credential.Uid), int(o.credential.Gid))
}

// environment is what PostgreSQL gets to see: no PG… setting of the caller's, no secret of its surroundings.
func (o *owner) environment() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC", "HOME=/nonexistent"}
}
