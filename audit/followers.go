package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// WitnessAddress is where a witness takes checkpoints (https://c2sp.org/tlog-witness), and the key by which its cosignatures
// are known.
type WitnessAddress struct {
	Verifier string       // see NewCosignatureVerifier
	URL      string       // submission prefix: requests go to URL/add-checkpoint
	Client   *http.Client // nil is one with a timeout of 10 s
}

func (w WitnessAddress) verifier() (note.Verifier, error) { return NewCosignatureVerifier(w.Verifier) }

func (w WitnessAddress) name() string {
	name, _, _ := strings.Cut(w.Verifier, "+")
	return name
}

// followers take new checkpoints out of the house while this process leads: to witnesses, and to anchors.
type followers struct {
	s       *Sequencer
	stop    context.CancelFunc
	running sync.WaitGroup
	fresh   []chan struct{} // one each: there is a new checkpoint
}

func (s *Sequencer) follow(ctx context.Context) *followers {
	f := &followers{s: s}
	ctx, f.stop = context.WithCancel(ctx)
	for i, w := range s.cfg.Witnesses {
		fresh := make(chan struct{}, 1)
		f.fresh = append(f.fresh, fresh)
		f.running.Go(func() { s.witness(ctx, i, w, fresh) })
	}
	if len(s.cfg.Anchors) > 0 {
		fresh := make(chan struct{}, 1)
		f.fresh = append(f.fresh, fresh)
		f.running.Go(func() { s.anchorAlways(ctx, fresh) })
	}
	return f
}

func (f *followers) publish() {
	for _, c := range f.fresh {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// end stops them. When the process stops, and not only the lease, the newest checkpoint is anchored.
func (f *followers) end(ctx context.Context) {
	f.stop()
	f.running.Wait()
	if ctx.Err() == nil || len(f.s.cfg.Anchors) == 0 {
		return
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), partingFor)
	defer cancel()
	if err := f.s.anchor(last); err != nil {
		f.s.cfg.Logger.Warn("the last audit checkpoint was not anchored", "error", err)
	}
}

// anchorAlways anchors the first checkpoint that comes, and then every so often the newest.
func (s *Sequencer) anchorAlways(ctx context.Context, fresh <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-fresh:
		}
		for wait := s.cfg.AnchorEvery; ; {
			err := s.anchor(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.cfg.Logger.Error("anchoring an audit checkpoint failed", "error", err)
				s.alert("checkpoints of the audit trail cannot be anchored")
				wait = min(s.cfg.AnchorEvery, time.Minute)
			}
			if !pause(ctx, wait) {
				return
			}
			if err == nil {
				break
			}
		}
	}
}

// anchor puts the newest checkpoint, with the cosignatures that it has, into every anchor.
func (s *Sequencer) anchor(ctx context.Context) error {
	msg, err := s.cfg.Storage.Checkpoint(ctx)
	if err != nil || msg == nil {
		return err
	}
	c, _, err := OpenCheckpoint(msg, s.known)
	if err != nil {
		return err
	}
	if c.Size <= s.Stats().Anchored {
		return nil
	}
	var errs []error
	for _, a := range s.cfg.Anchors {
		putting, cancel := context.WithTimeout(ctx, stepTimeout)
		errs = append(errs, a.Put(putting, AnchorName(c.Size, msg), msg))
		cancel()
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.note(func(st *SequencerStats) { st.Anchored = c.Size })
	return nil
}

// errRefused says that a witness does not find in the log what it saw before.
var errRefused = errors.New("audit: the witness refuses the log")

// witness takes the newest checkpoint to one witness whenever there is one.
func (s *Sequencer) witness(ctx context.Context, i int, w WitnessAddress, fresh <-chan struct{}) {
	verifier, err := w.verifier()
	if err != nil {
		return // NewSequencer has looked
	}
	if w.Client == nil {
		w.Client = &http.Client{Timeout: 10 * time.Second}
	}
	sub := &cosigning{s: s, w: w, verifier: verifier}
	wait := s.cfg.WitnessEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-fresh:
		}
		for {
			trying, cancel := context.WithTimeout(ctx, stepTimeout)
			size, err := sub.cosign(trying)
			cancel()
			if ctx.Err() != nil {
				return
			}
			refused := errors.Is(err, errRefused)
			s.note(func(st *SequencerStats) {
				st.Witnesses[i].Refused = refused
				st.Witnesses[i].Cosigned = max(st.Witnesses[i].Cosigned, size)
			})
			if refused {
				s.alert("witness " + w.name() + " refuses the audit trail's checkpoint: it has seen another tree")
			}
			if err == nil {
				wait = s.cfg.WitnessEvery
			} else {
				s.cfg.Logger.Warn("a witness did not cosign", "witness", w.name(), "error", err)
				wait = min(2*wait, max(time.Minute, s.cfg.WitnessEvery))
			}
			if !pause(ctx, wait) {
				return
			}
			if err == nil {
				break
			}
		}
	}
}

// cosigning talks to one witness. One goroutine.
type cosigning struct {
	s        *Sequencer
	w        WitnessAddress
	verifier note.Verifier
	old      int64 // what the witness has seen, as far as is known
}

// cosign has the newest checkpoint cosigned and keeps the cosignature. It returns the size.
func (c *cosigning) cosign(ctx context.Context) (int64, error) {
	told := false // the witness has told its size for this checkpoint
	for range 5 {
		msg, err := c.s.cfg.Storage.Checkpoint(ctx)
		if err != nil || msg == nil {
			return 0, err
		}
		head, opened, err := OpenCheckpoint(msg, c.s.known)
		if err != nil {
			return 0, err
		}
		if _, err := note.Open(msg, note.VerifierList(c.verifier)); err == nil {
			c.old = max(c.old, head.Size)
			return head.Size, nil
		}
		if c.old > head.Size {
			return 0, fmt.Errorf("it has seen %d leaves, the log has %d: %w", c.old, head.Size, errRefused)
		}
		bare, err := note.Sign(&note.Note{Text: opened.Text, Sigs: opened.Sigs})
		if err != nil {
			return 0, err
		}
		status, size, answer, err := c.submit(ctx, head, bare)
		switch {
		case err != nil:
			return 0, err
		case status == http.StatusOK:
			return head.Size, c.keep(ctx, head, answer)
		case status == http.StatusConflict && size == c.old && told:
			return 0, fmt.Errorf("it has seen another tree of %d leaves: %w", size, errRefused)
		case status == http.StatusConflict && size >= 0:
			c.old, told = size, true // it may have grown since: look again
		case status == http.StatusUnprocessableEntity:
			return 0, fmt.Errorf("the tree of %d leaves does not continue its one of %d: %w", head.Size, c.old, errRefused)
		default:
			return 0, fmt.Errorf("it answered %d", status)
		}
	}
	return 0, errors.New("it tells another size each time")
}

// submit posts a checkpoint. size is what a conflict tells, -1 without one.
func (c *cosigning) submit(ctx context.Context, head Checkpoint, msg []byte) (status int, size int64, answer []byte, err error) {
	body := fmt.Appendf(nil, "old %d\n", c.old)
	if c.old > 0 && c.old < head.Size {
		proof, err := tlog.ProveTree(head.Size, c.old, HashReader(ctx, c.s.cfg.Storage, head))
		if err != nil {
			return 0, -1, nil, fmt.Errorf("proving consistency with size %d: %w", c.old, err)
		}
		for _, h := range proof {
			body = fmt.Appendf(body, "%s\n", h)
		}
	}
	body = append(append(body, '\n'), msg...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(c.w.URL, "/")+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, -1, nil, fmt.Errorf("asking witness: %w", err)
	}
	res, err := c.w.Client.Do(req)
	if err != nil {
		return 0, -1, nil, fmt.Errorf("asking witness: %w", err)
	}
	defer res.Body.Close()
	if answer, err = io.ReadAll(io.LimitReader(res.Body, maxAddCheckpoint)); err != nil {
		return 0, -1, nil, fmt.Errorf("reading witness's answer: %w", err)
	}
	size = -1
	if kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); res.StatusCode == http.StatusConflict && kind == "text/x.tlog.size" {
		if size, err = strconv.ParseInt(strings.TrimSpace(string(answer)), 10, 64); err != nil || size < 0 {
			return 0, -1, nil, errors.New("reading witness's answer: not a size")
		}
	}
	return res.StatusCode, size, answer, nil
}

// keep stores the lines of an answer that the witness's key has signed.
func (c *cosigning) keep(ctx context.Context, head Checkpoint, answer []byte) error {
	kept := false
	for line := range bytes.Lines(answer) {
		n, err := openNote(slices.Concat([]byte(head.Text()+"\n"), line), note.VerifierList(c.verifier))
		if err != nil {
			continue // a signature of a key that we do not know, or a wrong one
		}
		if _, err := CosignatureTime(n.Sigs[0]); err != nil {
			continue
		}
		if err := c.s.cfg.Storage.Cosign(ctx, head.Size, line); err != nil {
			return err
		}
		kept = true
	}
	if !kept {
		return errors.New("its answer has no cosignature of its key")
	}
	c.old = head.Size
	return nil
}
