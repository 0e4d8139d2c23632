package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// WitnessConfig is what a Witness needs. Dir, Signer and at least one of Logs are required.
type WitnessConfig struct {
	Dir    string          // of its own, on a disk that outlives the process: who loses it forgets what he saw
	Signer note.Signer     // NewCosigner
	Logs   []note.Verifier // keys of the logs to witness; a key's name is its log's origin, several keys of one origin may be in use
	FS     FS              // nil is the operating system's
	Logger *slog.Logger    // nil discards
}

// Witness remembers the newest checkpoint of each log and cosigns only what continues it: a log that was rolled back or
// forked gets no cosignature ever again. It serves https://c2sp.org/tlog-witness, and GET /checkpoint?origin=ORIGIN returns
// what it cosigned last, for verification to hold a trail against. It should run where none of the log's administrators is
// one.
type Witness struct {
	cfg  WitnessConfig
	lock io.Closer
	logs map[string]*witnessed // by origin; fixed
}

// witnessed is one log's state.
type witnessed struct {
	origin string
	known  note.Verifiers
	file   string

	mu   sync.Mutex
	last Checkpoint // Size 0: none
	note []byte     // last, with the log's signatures and ours
	lost bool       // the file may be newer than last: it is read again first
}

const (
	maxAddCheckpoint = 128 << 10
	witnessLock      = "lock"
)

// NewWitness opens the state in cfg.Dir. It refuses a state that it cannot read, or that no configured key of the log
// signed (keep old keys configured): to start over would be to forget. ErrLocked says that another process is the witness there.
func NewWitness(cfg WitnessConfig) (*Witness, error) {
	if cfg.FS == nil {
		cfg.FS = OS{}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	w := &Witness{cfg: cfg, logs: map[string]*witnessed{}}
	keys := map[string][]note.Verifier{}
	for _, v := range cfg.Logs {
		keys[v.Name()] = append(keys[v.Name()], v)
	}
	if len(keys) == 0 {
		return nil, errors.New("opening witness: it knows no log")
	}
	if err := cfg.FS.MkdirAll(cfg.Dir); err != nil {
		return nil, fmt.Errorf("opening witness: %w", err)
	}
	lock, err := cfg.FS.Lock(filepath.Join(cfg.Dir, witnessLock))
	if err != nil {
		return nil, fmt.Errorf("opening witness: %w", err)
	}
	w.lock = lock
	for origin, list := range keys {
		id := sha256.Sum256([]byte(origin))
		l := &witnessed{origin: origin, known: note.VerifierList(list...), file: filepath.Join(cfg.Dir, hex.EncodeToString(id[:])+".checkpoint")}
		w.logs[origin] = l
		if err := w.load(l); err != nil {
			return nil, errors.Join(fmt.Errorf("opening witness: state of %s: %w", origin, err), lock.Close())
		}
	}
	return w, nil
}

// Close lets another process be the witness. No request may be under way.
func (w *Witness) Close() error { return w.lock.Close() }

// load reads a log's state. There is none before the first cosignature.
func (w *Witness) load(l *witnessed) error {
	msg, err := w.read(l.file)
	if errors.Is(err, fs.ErrNotExist) && l.last.Size == 0 {
		l.lost = false
		return nil
	}
	if err != nil {
		return err
	}
	c, _, err := OpenCheckpoint(msg, l.known)
	if err != nil {
		return err
	}
	if c.Origin != l.origin || c.Size < l.last.Size {
		return fmt.Errorf("it is of another log or older than what was cosigned: %w", ErrCheckpoint)
	}
	l.last, l.note, l.lost = c, msg, false
	return nil
}

func (w *Witness) read(name string) (_ []byte, err error) {
	f, err := w.cfg.FS.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxAddCheckpoint {
		return nil, fmt.Errorf("state of %d bytes: %w", size, ErrCheckpoint)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) != size {
		return nil, fmt.Errorf("reading: %w", errors.Join(err, io.ErrUnexpectedEOF))
	}
	return b, nil
}

// write makes a file durable, whole or not at all.
func (w *Witness) write(name string, data []byte) error {
	tmp := name + ".new"
	if err := w.cfg.FS.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := w.cfg.FS.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Datasync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := w.cfg.FS.Rename(tmp, name); err != nil {
		return err
	}
	return w.cfg.FS.SyncDir(filepath.Dir(name))
}

// ServeHTTP implements http.Handler.
func (w *Witness) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/add-checkpoint" && r.Method == http.MethodPost:
		body, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxAddCheckpoint))
		if err != nil {
			refuse(rw, http.StatusBadRequest, "the body cannot be read or is too long")
			return
		}
		w.add(rw, body)
	case r.URL.Path == "/checkpoint" && r.Method == http.MethodGet:
		l := w.logs[r.URL.Query().Get("origin")]
		if l == nil {
			refuse(rw, http.StatusNotFound, "unknown log; give ?origin=")
			return
		}
		l.mu.Lock()
		msg := l.note
		l.mu.Unlock()
		if msg == nil {
			refuse(rw, http.StatusNotFound, "no checkpoint of this log was cosigned yet")
			return
		}
		rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = rw.Write(msg) // the client is gone: nothing to do
	case r.URL.Path == "/add-checkpoint" || r.URL.Path == "/checkpoint":
		refuse(rw, http.StatusMethodNotAllowed, "POST /add-checkpoint, GET /checkpoint?origin=")
	default:
		refuse(rw, http.StatusNotFound, "POST /add-checkpoint, GET /checkpoint?origin=")
	}
}

func refuse(rw http.ResponseWriter, status int, why string) { http.Error(rw, why, status) }

// conflict tells the client what was cosigned last.
func conflict(rw http.ResponseWriter, size int64) {
	rw.Header().Set("Content-Type", "text/x.tlog.size")
	rw.WriteHeader(http.StatusConflict)
	_, _ = fmt.Fprintf(rw, "%d\n", size) // the client is gone: nothing to do
}

// submission of a checkpoint, as a request's body has it.
type addCheckpoint struct {
	old   int64
	proof tlog.TreeProof
	note  []byte
}

func parseAddCheckpoint(body []byte) (a addCheckpoint, err error) {
	head, rest, ok := bytes.Cut(body, []byte("\n\n"))
	lines := bytes.Split(head, []byte("\n"))
	old, isOld := bytes.CutPrefix(lines[0], []byte("old "))
	if !ok || !isOld || len(lines) > 1+maxPath {
		return a, errors.New("the body is not: old SIZE, up to 63 proof lines, an empty line, a checkpoint")
	}
	if a.old, err = parseDecimal(string(old)); err != nil {
		return a, errors.New("old size is not a decimal number")
	}
	for _, line := range lines[1:] {
		h, err := parseHash(string(line))
		if err != nil {
			return a, errors.New("a proof line is not a hash in base64")
		}
		a.proof = append(a.proof, tlog.Hash(h))
	}
	a.note = rest
	return a, nil
}

// add answers add-checkpoint; the order of the checks is the specification's.
func (w *Witness) add(rw http.ResponseWriter, body []byte) {
	a, err := parseAddCheckpoint(body)
	if err != nil {
		refuse(rw, http.StatusBadRequest, err.Error())
		return
	}
	c, err := claimed(a.note)
	if err != nil {
		refuse(rw, http.StatusBadRequest, "the checkpoint is malformed")
		return
	}
	l := w.logs[c.Origin]
	if l == nil {
		refuse(rw, http.StatusNotFound, "unknown log")
		return
	}
	_, opened, err := OpenCheckpoint(a.note, l.known)
	switch {
	case err != nil:
		refuse(rw, http.StatusForbidden, "no key of the log that is known here signed this checkpoint")
		return
	case a.old > c.Size:
		refuse(rw, http.StatusBadRequest, "old size is above the checkpoint's")
		return
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lost {
		if err := w.load(l); err != nil {
			w.cfg.Logger.Error("witness state cannot be read", "log", l.origin, "error", err)
			refuse(rw, http.StatusInternalServerError, "the state cannot be read")
			return
		}
	}
	if c.Size == l.last.Size && c.Size > 0 && c.Root != l.last.Root {
		w.keepFork(l, a.note, c)
		conflict(rw, l.last.Size)
		return
	}
	if a.old != l.last.Size {
		conflict(rw, l.last.Size)
		return
	}
	if err := continues(a.proof, c, l.last); err != nil {
		w.cfg.Logger.Warn("witness refused a checkpoint", "log", l.origin, "size", c.Size, "last", l.last.Size)
		refuse(rw, http.StatusUnprocessableEntity, "the proof does not show that the checkpoint continues the one cosigned last")
		return
	}
	cosigned, err := note.Sign(&note.Note{Text: opened.Text, Sigs: opened.Sigs}, w.cfg.Signer)
	if err != nil {
		w.cfg.Logger.Error("witness cannot sign", "log", l.origin, "error", err)
		refuse(rw, http.StatusInternalServerError, "signing failed")
		return
	}
	// Nobody sees the cosignature before the state that it stands for is durable.
	if err := w.write(l.file, cosigned); err != nil {
		l.lost = true
		w.cfg.Logger.Error("witness state cannot be written", "log", l.origin, "error", err)
		refuse(rw, http.StatusInternalServerError, "the state cannot be written")
		return
	}
	l.last, l.note = c, cosigned
	rw.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = rw.Write(cosigned[bytes.LastIndex(cosigned[:len(cosigned)-1], []byte("\n"))+1:]) // the client is gone: nothing to do
}

// continues checks the consistency proof (RFC 6962, 2.1.2) from what was cosigned last.
func continues(proof tlog.TreeProof, c, last Checkpoint) error {
	switch {
	case c.Size == 0 && c.Root != emptyRoot():
		return errors.New("root of an empty tree")
	case last.Size == 0 || c.Size == last.Size:
		if len(proof) > 0 {
			return errors.New("a proof where there is nothing to prove")
		}
		return nil
	}
	return tlog.CheckTree(proof, c.Size, tlog.Hash(c.Root), last.Size, tlog.Hash(last.Root))
}

// keepFork keeps what proves that the log signed two trees of one size: its signature is under both.
func (w *Witness) keepFork(l *witnessed, msg []byte, c Checkpoint) {
	w.cfg.Logger.Error("a log signed two trees of one size", "log", l.origin, "size", c.Size)
	name := l.file + ".fork-" + strconv.FormatInt(c.Size, 10) + "-" + hex.EncodeToString(c.Root[:4])
	if err := w.write(name, msg); err != nil {
		w.cfg.Logger.Error("the proof of it cannot be written", "log", l.origin, "error", err)
	}
}
