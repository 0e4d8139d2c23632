package audittest_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/audit/audittest"
)

// ledger is evidence that can be bent: batches, spans and checkpoints as a list each.
type ledger struct {
	audittest.Storage
	signer      note.Signer
	batches     []audit.Batch
	spans       []audit.Span
	checkpoints [][]byte
	hashes      []tlog.Hash
	size        int64
	strays      []audit.Stray
}

func (l *ledger) Ingest(ctx context.Context, b audit.Batch) error {
	if err := l.Storage.Ingest(ctx, b); err != nil {
		return err
	}
	l.batches = append(l.batches, b)
	return nil
}

func (l *ledger) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	var out []tlog.Hash
	for _, i := range indexes {
		out = append(out, l.hashes[i])
	}
	return out, nil
}

// sequence puts the batches that are not in the tree into it and signs a checkpoint.
func (l *ledger) sequence(t *testing.T) {
	t.Helper()
	for _, b := range l.batches[len(l.spans):] {
		l.spans = append(l.spans, audit.Span{Index: l.size, Stream: b.Stream, First: b.First, Count: len(b.Rows), Prev: b.Prev, Chain: b.Chain})
		for _, r := range b.Rows {
			hashes, err := tlog.StoredHashesForRecordHash(l.size, tlog.Hash(r.Leaf), l)
			if err != nil {
				t.Fatal(err)
			}
			l.hashes = append(l.hashes, hashes...)
			l.size++
		}
	}
	root, err := tlog.TreeHash(l.size, l)
	if err != nil {
		t.Fatal(err)
	}
	l.sign(t, l.size, root)
}

func (l *ledger) sign(t *testing.T, size int64, root tlog.Hash) {
	t.Helper()
	text := fmt.Sprintf("%s\n%d\n%s\n", l.signer.Name(), size, base64.StdEncoding.EncodeToString(root[:]))
	signed, err := note.Sign(&note.Note{Text: text}, l.signer)
	if err != nil {
		t.Fatal(err)
	}
	l.checkpoints = append(l.checkpoints, signed)
}

func (l *ledger) Checkpoint(context.Context) ([]byte, error) {
	if len(l.checkpoints) == 0 {
		return nil, nil
	}
	return l.checkpoints[len(l.checkpoints)-1], nil
}

func (l *ledger) Checkpoints(_ context.Context, after int64, limit int) (out [][]byte, _ error) {
	for _, c := range l.checkpoints {
		var size int64
		if _, err := fmt.Sscanf(strings.SplitN(string(c), "\n", 3)[1], "%d", &size); err != nil {
			return nil, err
		}
		if size > after && len(out) < limit {
			out = append(out, c)
		}
	}
	return out, nil
}

func (l *ledger) Spans(_ context.Context, from int64, limit int) (out []audit.Span, _ error) {
	for _, s := range l.spans {
		if s.Index+int64(s.Count) > from && len(out) < limit {
			out = append(out, s)
		}
	}
	return out, nil
}

func (l *ledger) Unsequenced(_ context.Context, limit int) (out []audit.Span, _ error) {
	for _, b := range l.batches[min(len(l.spans), len(l.batches)):] {
		out = append(out, audit.Span{Stream: b.Stream, First: b.First, Count: len(b.Rows), Prev: b.Prev, Chain: b.Chain})
	}
	return out[:min(limit, len(out))], nil
}

func (l *ledger) Rows(_ context.Context, s audit.Span) ([]audit.Row, error) {
	for _, b := range l.batches {
		if b.Stream == s.Stream && b.First == s.First {
			return slices.Clone(b.Rows), nil
		}
	}
	return nil, nil
}

func (l *ledger) Strays(context.Context, int) ([]audit.Stray, error)   { return l.strays, nil }
func (l *ledger) Prunings(context.Context) ([][]byte, error)           { return nil, nil }
func (l *ledger) Keys(context.Context) ([]string, error)               { return nil, nil }
func (l *ledger) Tiles(context.Context, []tlog.Tile) ([][]byte, error) { return nil, nil }
func (l *ledger) Cosign(context.Context, int64, []byte) error          { return nil }
func (l *ledger) Locate(context.Context, audit.StreamID, uint64) (audit.Span, bool, error) {
	return audit.Span{}, false, nil
}

// scene is a log that has recorded, shipped and been sequenced twice, all of it acknowledged.
type scene struct {
	*audittest.Invariants
	ledger *ledger
	dir    string
	log    *audit.Log
	stop   func()
}

func play(t *testing.T) *scene {
	t.Helper()
	secret, public, err := note.GenerateKey(rand.Reader, "test.example/audit")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := note.NewSigner(secret)
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := note.NewVerifier(public)
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{ledger: &ledger{signer: signer}, dir: t.TempDir()}
	s.Invariants = &audittest.Invariants{Journals: []string{s.dir}, Evidence: s.ledger, Keys: note.VerifierList(verifier)}
	if s.log, err = audit.Open(audit.Config{Dir: s.dir, Storage: s.ledger}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.log.Run(ctx) }()
	closed := false
	s.stop = func() {
		if closed {
			return
		}
		closed = true
		if err := s.log.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(s.stop)
	for range 2 {
		for i := range 20 {
			s.record(t, fmt.Sprint("r-", s.ledger.size, "-", i), audit.Power)
		}
		s.drain(t)
		s.ledger.sequence(t)
		s.clean(t)
	}
	return s
}

func (s *scene) record(t *testing.T, request string, level audit.Level) {
	t.Helper()
	e := &audit.Event{Type: audit.TypeREST, Interaction: "read", Action: audit.ActionRead, Patient: "p1", RequestID: request}
	if _, err := s.log.Record(t.Context(), level, e); err != nil {
		t.Fatal(err)
	}
	s.Acknowledge(audittest.Ack{Key: request, Level: level, Events: 1, PHI: true})
}

func (s *scene) drain(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := s.log.Drain(ctx); err != nil {
		t.Fatal(err)
	}
}

func (s *scene) clean(t *testing.T) {
	t.Helper()
	found, err := s.Recheck(t.Context(), audit.Process)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range found.Violations {
		t.Error(v)
	}
}

// Each property is broken on purpose, and the helper says which. An untouched scene has no violation, in play.
func TestInvariantsBreak(t *testing.T) {
	for name, c := range map[string]struct {
		want     audittest.Property
		survives audit.Level
		breaks   func(t *testing.T, s *scene)
	}{
		"acknowledged and nowhere": {audittest.I1, audit.Process, func(t *testing.T, s *scene) {
			s.Acknowledge(audittest.Ack{Key: "never", Level: audit.Process})
		}},
		"acknowledged once and there twice": {audittest.I1, audit.Process, func(t *testing.T, s *scene) {
			s.record(t, "twin", audit.Process)
			s.record(t, "twin", audit.Process)
		}},
		"acknowledged at power and gone after a power cut": {audittest.I1, audit.Power, func(t *testing.T, s *scene) {
			s.Acknowledge(audittest.Ack{Key: "never", Level: audit.Power})
		}},
		"a gap": {audittest.I2, audit.Process, func(t *testing.T, s *scene) {
			s.ledger.batches[0].First++
			s.ledger.spans[0].First++
		}},
		"another chain": {audittest.I2, audit.Process, func(t *testing.T, s *scene) {
			last := len(s.ledger.batches) - 1
			s.ledger.batches[last].Prev[0] ^= 1
			s.ledger.spans[last].Prev[0] ^= 1
		}},
		"rows in another order": {audittest.I2, audit.Process, func(t *testing.T, s *scene) {
			rows := s.ledger.batches[0].Rows
			rows[0], rows[1] = rows[1], rows[0]
		}},
		"a missing row": {audittest.I3, audit.Process, func(t *testing.T, s *scene) {
			b := &s.ledger.batches[0]
			b.Rows = b.Rows[:len(b.Rows)-1]
		}},
		"a stray": {audittest.I3, audit.Process, func(t *testing.T, s *scene) {
			s.ledger.strays = []audit.Stray{{Stream: s.log.Stream(), Seq: 3}}
		}},
		"a smaller tree": {audittest.I4, audit.Process, func(t *testing.T, s *scene) {
			s.ledger.checkpoints = s.ledger.checkpoints[:1]
		}},
		"a fork": {audittest.I4, audit.Process, func(t *testing.T, s *scene) {
			size := s.ledger.size
			s.ledger.checkpoints = s.ledger.checkpoints[:1]
			s.ledger.sign(t, size, tlog.Hash{1})
		}},
		"a checkpoint by somebody else": {audittest.I4, audit.Process, func(t *testing.T, s *scene) {
			secret, _, err := note.GenerateKey(rand.Reader, "test.example/audit")
			if err != nil {
				t.Fatal(err)
			}
			if s.ledger.signer, err = note.NewSigner(secret); err != nil {
				t.Fatal(err)
			}
			s.ledger.sequence(t)
			s.ledger.checkpoints = s.ledger.checkpoints[1:]
		}},
		"an answer before its event": {audittest.I5, audit.Process, func(t *testing.T, s *scene) {
			s.Acknowledge(audittest.Ack{Key: "late", Level: audit.Process, PHI: true})
			s.record(t, "late", audit.Process)
		}},
		"another body": {audittest.I6, audit.Process, func(t *testing.T, s *scene) {
			b := &s.ledger.batches[0].Rows[3]
			b.Body = bytes.Replace(b.Body, []byte("p1"), []byte("p2"), 1)
		}},
		"another column": {audittest.I6, audit.Process, func(t *testing.T, s *scene) {
			s.ledger.batches[0].Rows[3].Altered = []string{"patient"}
		}},
		"a journal that is gone, and nobody says so": {audittest.I7, audit.Power, func(t *testing.T, s *scene) {
			s.stop()
			// The start and stop of another log that had no storage.
			l, err := audit.Open(audit.Config{Dir: s.dir})
			if err != nil {
				t.Fatal(err)
			}
			stream := l.Stream().String()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Check(t.Context(), audit.Process); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(filepath.Join(s.dir, stream)); err != nil {
				t.Fatal(err)
			}
		}},
		"lost in a power cut, and nobody says so": {audittest.I7, audit.Power, func(t *testing.T, s *scene) {
			s.Acknowledge(audittest.Ack{Key: "never", Level: audit.Process})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := play(t)
			c.breaks(t, s)
			found, err := s.Recheck(t.Context(), c.survives)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(found.Violations, func(v audittest.Violation) bool { return v.Property == c.want }) {
				t.Errorf("%q is not reported, but %v", c.want, found.Violations)
			}
		})
	}
}

// What a step reports beside violations.
func TestInvariantsFind(t *testing.T) {
	s := play(t)
	intent := &audit.Event{Type: audit.TypeREST, Interaction: "create", Action: audit.ActionCreate, Outcome: audit.Intent, RequestID: "w-1"}
	if _, err := s.log.Record(t.Context(), audit.Power, intent); err != nil {
		t.Fatal(err)
	}
	found, err := s.Check(t.Context(), audit.Process)
	if err != nil || len(found.Violations) > 0 || !slices.Equal(found.Unmatched, []string{"w-1"}) || found.TreeSize != s.ledger.size || found.Stored < 41 {
		t.Errorf("%+v, %v", found, err)
	}
	outcome := &audit.Event{Type: audit.TypeREST, Interaction: "create", Action: audit.ActionCreate, RequestID: "w-1", Correlation: intent.ID}
	if _, err := s.log.Record(t.Context(), audit.Process, outcome); err != nil {
		t.Fatal(err)
	}
	if found, err = s.Check(t.Context(), audit.Process); err != nil || len(found.Violations) > 0 || len(found.Unmatched) > 0 {
		t.Errorf("%+v, %v", found, err)
	}
}
