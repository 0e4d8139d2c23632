package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/auth"
	"github.com/chartkeep/chartkeep/phi"
	"github.com/chartkeep/chartkeep/phi/keyset"
	"github.com/chartkeep/chartkeep/phi/keyset/kms"
)

// deployment names a running deployment: the settings of serve, or the data directory of a demo. Verbs that work on one
// embed it.
type deployment struct {
	Data string `help:"Data directory of a demo." placeholder:"DIR" xor:"which" group:"Deployment"`

	DatabaseURL          string        `help:"PostgreSQL connection URL of the role chartkeep, without a password." placeholder:"URL" group:"Deployment"`
	ReadDatabaseURL      string        `help:"The same of a read replica, for officers' queries of the audit trail." placeholder:"URL" group:"Deployment"`
	DatabasePasswordFile string        `help:"File that holds the database password." placeholder:"FILE" group:"Deployment"`
	KMS                  []string      `name:"kms" help:"Root of the key hierarchy, a KMS key: aws-kms://ARN, gcp-kms://projects/…, hcvault://HOST/transit/keys/NAME. Given again, those that may still open what they wrapped: the first wraps what is new. file:PATH is for development and refused by serve." placeholder:"URI" group:"Deployment"`
	KMSTokenFile         string        `name:"kms-token-file" help:"File with Vault's token, read again for each call. AWS and Google: their own default credentials." placeholder:"FILE" group:"Deployment"`
	KMSCAFile            string        `name:"kms-ca-file" help:"CA certificates (PEM) of Vault, or of --kms-endpoint, instead of the system's." placeholder:"FILE" group:"Deployment"`
	KMSEndpoint          string        `name:"kms-endpoint" help:"Google Cloud KMS by Private Service Connect. AWS: AWS_ENDPOINT_URL_KMS in the environment." placeholder:"HOST:PORT" group:"Deployment"`
	KMSRefresh           time.Duration `name:"kms-refresh" help:"How often the KMS is asked again for the keys in use." default:"5m" placeholder:"DURATION" group:"Deployment"`
	KMSHold              time.Duration `name:"kms-hold" help:"How long a key is used on while the KMS does not open it; then nothing is disclosed. Five minutes more than --kms-refresh at least." default:"10m" placeholder:"DURATION" group:"Deployment"`
	Journal              string        `help:"Directory of the audit journal, on a disk that outlives the process." placeholder:"DIR" group:"Deployment"`
	JournalKeep          time.Duration `help:"How long the journal keeps what the database has, as a second copy; up to 1 GiB, and less when space is short." default:"168h" placeholder:"DURATION" group:"Deployment"`
	UniqueIdentifier     []string      `help:"System of identifiers of which no two patients may carry the same value, as of medical record numbers; may be repeated." sep:"none" placeholder:"SYSTEM" group:"Deployment"`
	AuditDurability      string        `help:"What an audit event must survive before PHI leaves: process (kill -9), power (power cut) or database (loss of this host)." enum:"process,power,database" default:"power" group:"Deployment"`

	checkpoints `embed:""`
}

// demoFile is DIR/demo.json as DESIGN.md 4.1 has it.
type demoFile struct {
	FHIR          string            `json:"fhir"`
	API           string            `json:"api"`
	Issuer        string            `json:"issuer"`
	Metrics       string            `json:"metrics"`
	DatabaseURL   string            `json:"database_url"`
	Personas      map[string]string `json:"personas"`
	CheckpointKey string            `json:"checkpoint_key"`
}

// Where things are in a demo's data directory.
const (
	demoJSON         = "demo.json"
	demoDatabase     = "chartkeep"
	demoPasswordFile = "keys/database-password"
	demoRootKey      = "keys/root"
	demoCheckpoint   = "keys/checkpoint"
	demoJournal      = "journal"
	demoAnchors      = "anchors"
	demoOAuth        = "oauth"
	demoLog          = "server.log"
	demoPopulation   = "population.json"
)

func readDemoFile(dir string) (*demoFile, error) {
	b, err := os.ReadFile(filepath.Join(dir, demoJSON))
	if os.IsNotExist(err) {
		return nil, fmt.Errorf("there is no demo in %s; start one with: chartkeep demo --data %s", dir, dir)
	}
	if err != nil {
		return nil, err
	}
	var f demoFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, demoJSON), err)
	}
	return &f, nil
}

// settings are a deployment's, resolved: files read, a demo's folder looked up.
type settings struct {
	databaseDSN string
	readDSN     string        // "" reads where it writes
	roots       []keyset.Root // the first wraps what is new
	refresh     time.Duration // of what the roots have opened
	hold        time.Duration
	journal     string
	keep        time.Duration  // of shipped segments of the journal
	unique      []string       // systems of identifiers
	names       phi.NameSearch // how names must be indexed; "" takes what is there
	level       audit.Level
	sessions    map[string]auth.SessionLimit // by role
	keys        []audit.LogKey               // that sign checkpoints; none: this process does not sequence
	witnesses   []audit.WitnessAddress
	anchors     []audit.Anchor
	emergency   auth.EmergencyLimits
	issuers     []issuerSettings // of access tokens; serve only
}

// resolve reads the files that the flags name. production refuses what is for development only.
func (d *deployment) resolve(production bool) (*settings, error) {
	if d.Data == "" && d.DatabaseURL == "" && !production {
		d.Data = defaultData
	}
	if d.Data != "" {
		if production {
			return nil, usage("--data is a demo's folder; serve takes --database-url, --kms and --journal")
		}
		f, err := readDemoFile(d.Data)
		if err != nil {
			return nil, err
		}
		admin, err := url.Parse(f.DatabaseURL)
		if err != nil {
			return nil, fmt.Errorf("reading %s: database_url is not a URL", demoJSON)
		}
		if c, err := net.Dial("tcp", admin.Host); err != nil { //nolint:noctx // loopback answers or refuses at once
			return nil, fmt.Errorf("the demo in %s is not running; start it with: chartkeep demo --data %s", d.Data, d.Data)
		} else {
			c.Close()
		}
		s, err := demoSettings(d.Data, f.DatabaseURL, durability(d.AuditDurability))
		if err != nil {
			return nil, err
		}
		s.unique = d.UniqueIdentifier
		return s, nil
	}
	for name, value := range map[string]string{"--database-url": d.DatabaseURL, "--kms": strings.Join(d.KMS, ""), "--journal": d.Journal} {
		if value == "" {
			return nil, usage("%s is missing", name)
		}
	}
	dsn, err := withPassword(d.DatabaseURL, d.DatabasePasswordFile)
	if err != nil {
		return nil, err
	}
	var readDSN string
	if d.ReadDatabaseURL != "" {
		if readDSN, err = withPassword(d.ReadDatabaseURL, d.DatabasePasswordFile); err != nil {
			return nil, fmt.Errorf("--read-database-url: %w", err)
		}
	}
	if d.KMSRefresh < time.Second || d.KMSHold-d.KMSRefresh < 5*time.Minute {
		return nil, usage("--kms-hold %s is not five minutes more than --kms-refresh %s: an outage of the KMS that short must go unnoticed", d.KMSHold, d.KMSRefresh)
	}
	roots, err := d.openRoots()
	if err != nil {
		return nil, err
	}
	if development := slices.IndexFunc(roots, keyset.Root.Development); production && development >= 0 {
		return nil, usage("--kms %s is a development key: its holder can read every record on this disk; name a KMS key", d.KMS[development])
	}
	if production && len(d.CheckpointKey) == 0 {
		return nil, usage("--checkpoint-key is missing: it signs the audit trail's checkpoints; make one with: chartkeep audit keygen --origin NAME --out FILE")
	}
	s := &settings{
		databaseDSN: dsn, readDSN: readDSN, roots: roots, refresh: d.KMSRefresh, hold: d.KMSHold, journal: d.Journal, keep: cmp.Or(d.JournalKeep, -1),
		level: durability(d.AuditDurability), unique: d.UniqueIdentifier,
	}
	return s, d.read(s)
}

// demoSettings are the settings of a demo's folder.
func demoSettings(dir, adminDSN string, level audit.Level) (*settings, error) {
	dsn, err := url.Parse(adminDSN)
	if err != nil {
		return nil, fmt.Errorf("parsing database URL: %w", err)
	}
	password, err := readSecret(filepath.Join(dir, demoPasswordFile))
	if err != nil {
		return nil, err
	}
	dsn.User = url.UserPassword("chartkeep", password)
	root, err := keyset.NewFileRoot(filepath.Join(dir, demoRootKey), false)
	if err != nil {
		return nil, err
	}
	key, err := readCheckpointKey(filepath.Join(dir, demoCheckpoint))
	if err != nil {
		return nil, err
	}
	return &settings{
		databaseDSN: dsn.String(), roots: []keyset.Root{root}, journal: filepath.Join(dir, demoJournal), level: level,
		keys: []audit.LogKey{key}, anchors: []audit.Anchor{audit.AnchorDir(filepath.Join(dir, demoAnchors))},
	}, nil
}

// durability is what a value of --audit-durability means.
func durability(name string) audit.Level {
	for _, l := range []audit.Level{audit.Process, audit.Power, audit.Database} {
		if l.String() == name {
			return l
		}
	}
	return 0 // the flag's enum lets no other name through
}

func (s *settings) levels() phi.Levels {
	return phi.Levels{Disclosure: s.level, Other: audit.Process}
}

// openRoots opens the roots of the key hierarchy that the --kms settings name.
func (d *deployment) openRoots() ([]keyset.Root, error) {
	var roots []keyset.Root
	for _, uri := range d.KMS {
		if path, ok := strings.CutPrefix(uri, "file:"); ok {
			root, err := keyset.NewFileRoot(path, false)
			if err != nil {
				return nil, err
			}
			roots = append(roots, root)
			continue
		}
		root, err := kms.Open(uri, kms.Config{TokenFile: d.KMSTokenFile, CAFile: d.KMSCAFile, Endpoint: d.KMSEndpoint})
		if err != nil {
			return nil, usage("--kms: %v", err)
		}
		roots = append(roots, root)
	}
	return roots, nil
}

// withPassword puts the content of a file into a connection URL, which itself must not carry a password: command lines
// and environments are readable by others.
func withPassword(dsn, file string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil || u.Scheme == "" || u.Host == "" {
		return "", usage("--database-url is not a URL (postgres://chartkeep@host:5432/database)")
	}
	if _, has := u.User.Password(); has {
		return "", usage("--database-url carries a password; put it into a file and name that with --database-password-file")
	}
	if file == "" {
		return u.String(), nil
	}
	password, err := readSecret(file)
	if err != nil {
		return "", err
	}
	u.User = url.UserPassword(u.User.Username(), password)
	return u.String(), nil
}

// readSecret reads a one-line secret from a file that only its owner may read.
func readSecret(file string) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", fmt.Errorf("reading secret: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("reading secret: %s is readable by others; chmod 600 it", file)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("reading secret: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
