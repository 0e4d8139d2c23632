package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// oldest is the oldest PostgreSQL that the schema works on.
const oldest = 15

// binaries are the programs of one PostgreSQL.
type binaries struct {
	dir     string
	version string // 15.18
	major   int
}

func (b *binaries) path(program string) string { return filepath.Join(b.dir, program) }

// run runs a program as the owner; its words become the error.
func (b *binaries) run(ctx context.Context, own *owner, dir, stdin, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, b.path(program), args...)
	cmd.Dir, cmd.Env, cmd.Stdin = dir, own.environment(), strings.NewReader(stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: own.credential, Setpgid: true}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	return nil
}

// findPostgres returns programs that fit the cluster in data (same major version) or, when there is none yet, the first that
// are new enough. The owner must be able to run them.
func findPostgres(ctx context.Context, data string, own *owner, install bool, say func(string, ...any)) (*binaries, error) {
	wanted := 0
	if text, err := os.ReadFile(filepath.Join(data, "PG_VERSION")); err == nil && initialised(data) {
		wanted, _ = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	var refused []error
	look := func() *binaries {
		refused = nil
		for _, dir := range folders(ctx) {
			b, err := inspect(ctx, dir, own)
			switch {
			case err != nil:
				refused = append(refused, err)
			case b.major < oldest:
				refused = append(refused, fmt.Errorf("%s is version %s, too old", dir, b.version))
			case wanted != 0 && b.major != wanted:
				refused = append(refused, fmt.Errorf("%s is version %s, but the data were made by version %d", dir, b.version, wanted))
			default:
				return b
			}
		}
		return nil
	}
	if b := look(); b != nil {
		say("Found PostgreSQL %s in %s", b.version, b.dir)
		return b, nil
	}
	if install {
		err := installPostgres(ctx, wanted, say)
		if b := look(); b != nil {
			say("Found PostgreSQL %s in %s", b.version, b.dir)
			return b, nil
		}
		refused = append(refused, err)
	}
	need := fmt.Sprintf("PostgreSQL %d or newer", oldest)
	if wanted != 0 {
		need = fmt.Sprintf("PostgreSQL %d", wanted)
	}
	return nil, errors.Join(append([]error{fmt.Errorf(
		"no %s was found; install it (Debian, Ubuntu: apt-get install postgresql; macOS: brew install postgresql) or put the folder of its postgres and initdb on PATH", need)},
		refused...)...)
}

// folders lists where PostgreSQL may be, best first, without repeats.
func folders(ctx context.Context) []string {
	var dirs []string
	if p, err := exec.LookPath("postgres"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			dirs = append(dirs, filepath.Dir(p))
		}
	}
	// Distributions put only wrappers on PATH; pg_config knows the real folder.
	if p, err := exec.LookPath("pg_config"); err == nil {
		if out, err := exec.CommandContext(ctx, p, "--bindir").Output(); err == nil {
			dirs = append(dirs, strings.TrimSpace(string(out)))
		}
	}
	for _, pattern := range []string{"/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin"} {
		found, _ := filepath.Glob(pattern)
		slices.Reverse(found) // newest first
		dirs = append(dirs, found...)
	}
	dirs = append(dirs, "/usr/local/pgsql/bin")
	if cache, err := cacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(cache, "native", "bin"))
	}
	var kept []string
	for _, dir := range dirs {
		if _, err := os.Stat(filepath.Join(dir, "initdb")); err == nil && !slices.Contains(kept, dir) {
			kept = append(kept, dir)
		}
	}
	return kept
}

var versionText = regexp.MustCompile(`(\d+)(\.\d+)*`)

// inspect asks for the version, as the owner, who must be able to run it.
func inspect(ctx context.Context, dir string, own *owner) (*binaries, error) {
	b := &binaries{dir: dir}
	cmd := exec.CommandContext(ctx, b.path("postgres"), "--version")
	cmd.Dir, cmd.Env = "/", own.environment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: own.credential}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("running %s: %w", b.path("postgres"), err)
	}
	m := versionText.FindStringSubmatch(string(out))
	if m == nil {
		return nil, fmt.Errorf("%s does not tell its version", b.path("postgres"))
	}
	b.version = m[0]
	b.major, _ = strconv.Atoi(m[1])
	return b, nil
}
