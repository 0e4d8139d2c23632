package audit

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
)

// Kind is what a Finding says is wrong. The vocabulary is closed: THREATS.md names the attack behind each.
type Kind string

// Kinds of findings.
const (
	KindSignature  Kind = "signature"   // a checkpoint carries no signature of a key that is trusted, or one that does not verify
	KindCheckpoint Kind = "checkpoint"  // a checkpoint is malformed, of another log, or out of order
	KindRoot       Kind = "root"        // the leaves do not hash to the root that the log signed: rows, batches and tiles were rewritten together
	KindFork       Kind = "fork"        // the log signed another tree than the one that is known from outside
	KindRollback   Kind = "rollback"    // the tree is smaller than one that is known from outside, or than it says itself
	KindWitness    Kind = "witness"     // too few witnesses cosigned, or a cosignature does not verify
	KindTile       Kind = "tile"        // a tile is missing or was changed; rows and chain agree without it
	KindSpan       Kind = "span"        // the list of batches in the tree has a gap, an overlap or an impossible entry
	KindBody       Kind = "body"        // the bytes of a row are not what its leaf commits to, or no event
	KindLeaf       Kind = "leaf"        // a row's stored leaf is not the one in the tree
	KindColumn     Kind = "column"      // a column that officers search is not what the bytes of the row say
	KindMissing    Kind = "missing-row" // a row is gone, and no pruning record covers it
	KindExtra      Kind = "extra-row"   // a row stands where none was recorded
	KindOrder      Kind = "order"       // a row stands in another's place
	KindChain      Kind = "chain"       // a stored batch does not hash to its chain, or does not continue its stream
	KindGap        Kind = "gap"         // batches of a stream are gone
	KindStray      Kind = "stray"       // a row belongs to no stored batch
	KindPruning    Kind = "pruning"     // a pruning record is not signed, or does not fit what is there
	KindFile       Kind = "file"        // a bundle's file is missing, too many, or not what the manifest says
	KindManifest   Kind = "manifest"    // a bundle's manifest is not signed by a key that is trusted, or does not fit its content
)

// Finding is one thing that is wrong, and where.
type Finding struct {
	Kind   Kind     `json:"kind"`
	Index  int64    `json:"index"`           // first leaf concerned; -1 when it is not about a place in the tree
	Stream StreamID `json:"stream,omitzero"` // zero when it is not about one stream
	Seq    uint64   `json:"seq"`             // first record concerned, where Stream is set
	Count  int      `json:"count,omitempty"` // records of the same batch with the same finding, when more than one
	Column string   `json:"column,omitempty"`
	File   string   `json:"file,omitempty"` // of a bundle
	Detail string   `json:"detail"`         // a sentence; never PHI
}

// String says it in one line.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(string(f.Kind))
	if f.File != "" {
		fmt.Fprintf(&b, ", file %s", f.File)
	}
	if f.Index >= 0 {
		fmt.Fprintf(&b, ", leaf %d", f.Index)
	}
	if f.Stream != (StreamID{}) {
		fmt.Fprintf(&b, ", stream %s, record %d", f.Stream, f.Seq)
	}
	if f.Column != "" {
		fmt.Fprintf(&b, ", column %s", f.Column)
	}
	if f.Count > 1 {
		fmt.Fprintf(&b, " (and %d more of its batch)", f.Count-1)
	}
	return b.String() + ": " + f.Detail
}

// maxFindings bounds a report; Report.More counts the rest.
const maxFindings = 1000

// Report is what a verification established.
type Report struct {
	Checkpoint  Checkpoint    `json:"checkpoint"`   // newest of the log; Size 0: there is none yet
	Trust       Trust         `json:"trust"`        // on what its authenticity rests
	Bundle      bool          `json:"bundle"`       // of a bundle, not of the trail itself
	Partial     bool          `json:"partial"`      // a bundle that holds a selection: each row is in the tree, but nobody can tell from it whether one was left out
	From        int64         `json:"from"`         // leaves below were taken over from an earlier verification
	Rows        int64         `json:"rows"`         // rows whose bytes were hashed
	Pruned      int64         `json:"pruned"`       // rows that are gone under a pruning record
	Unsampled   int64         `json:"unsampled"`    // rows that Sample left out
	Spans       int64         `json:"spans"`        // batches in the tree
	Checkpoints int64         `json:"checkpoints"`  // signed sizes at which the root was compared
	Unsequenced int64         `json:"unsequenced"`  // rows that are stored and not in the tree yet
	Anchors     int           `json:"anchors"`      // checkpoints from outside that the tree continues
	Ahead       int           `json:"ahead"`        // those that are newer than the bundle, which nothing could be learnt from
	Signed      bool          `json:"signed"`       // a bundle whose manifest a key of the log signed that is trusted
	Witnessed   *Witnessed    `json:"witnessed"`    // newest checkpoint with enough cosignatures; nil when none was asked for or found
	Streams     []StreamState `json:"streams"`      // every stream, by its id
	OpenIntents int           `json:"open_intents"` // changes that were announced and of which no outcome is recorded
	Intents     []OpenIntent  `json:"intents"`      // the first of them
	Findings    []Finding     `json:"findings"`     // what is wrong, in the order in which it was met; empty: nothing
	More        int64         `json:"more"`         // findings beyond those
	Filter      string        `json:"filter"`       // of a partial bundle, in words
	Started     time.Time     `json:"started"`      //
	Duration    time.Duration `json:"duration_ns"`  //
	Verified    *Verified     `json:"-"`            // for VerifyOptions.From of the next run; nil unless OK
}

// Trust is on what the authenticity of a report rests.
type Trust string

// Trusts.
const (
	TrustKeys Trust = "keys" // the caller brought keys
	TrustSelf Trust = "self" // only on the keys that came with the evidence: what was verified is consistent, but whoever made it may have made the keys
)

// OK reports whether nothing is wrong. Unaccounted streams, open intents and TrustSelf are for people to judge.
func (r *Report) OK() bool { return len(r.Findings) == 0 }

// Witnessed is a checkpoint that witnesses cosigned.
type Witnessed struct {
	Checkpoint
	By []string  `json:"by"` // witnesses' key names
	At time.Time `json:"at"` // of the earliest of their cosignatures
}

// StreamState is where a stream stands.
type StreamState struct {
	Stream      StreamID  `json:"stream"`
	Next        uint64    `json:"next"`        // sequence number after its last record
	Chain       Hash      `json:"chain"`       // after it
	Last        time.Time `json:"last"`        // part time of it
	Stopped     bool      `json:"stopped"`     // its last record says that its process stopped
	Unseen      bool      `json:"unseen"`      // its last record was dropped, or not looked at
	Unaccounted bool      `json:"unaccounted"` // it neither stopped nor gave a sign of life in the last minute of the trail
}

// OpenIntent is an announced change of which no outcome is recorded: the process died, or the outcome was lost.
type OpenIntent struct {
	Correlation ID        `json:"correlation"`
	Event       ID        `json:"event"` // the intent's, or the first of several
	Stream      StreamID  `json:"stream"`
	Seq         uint64    `json:"seq"`
	At          time.Time `json:"at"` // part time
}

// Verified is what an earlier verification established, to go on from. Keep it where the trail's administrators cannot write:
// a tree that shrank or forked since is a finding, even without a witness.
type Verified struct {
	Checkpoint
	At       time.Time     `json:"at"`
	Frontier []Hash        `json:"frontier"` // roots of the perfect subtrees of the tree, largest first
	Streams  []StreamState `json:"streams"`
	Intents  []OpenIntent  `json:"intents"`
}

// Write says what was found, for people: at most shown findings, streams and intents.
func (r *Report) Write(w io.Writer, shown int) error {
	b := bufio.NewWriter(w) // the first error stays
	c := r.Checkpoint
	switch {
	case r.Partial:
		fmt.Fprintf(b, "A selection of the trail of %q (%q): %d rows, each proven to be in the tree of %d leaves.\n", c.Origin, r.Filter, r.Rows, c.Size)
		if r.Signed {
			fmt.Fprintln(b, "That no row was left out is the log's word: its key signed the manifest.")
		} else {
			fmt.Fprintln(b, "WARNING: no key of the log that is trusted signed the manifest: rows may have been left out.")
		}
	case c.Size == 0:
		fmt.Fprintln(b, "The log has no checkpoint yet.")
	default:
		fmt.Fprintf(b, "The trail of %q up to leaf %d, root %s.\n", c.Origin, c.Size, c.Root)
		fmt.Fprintf(b, "%d rows hashed, %d batches, %d signed checkpoints", r.Rows, r.Spans, r.Checkpoints)
		for _, n := range []struct {
			n    int64
			what string
		}{{r.From, "leaves taken over from an earlier verification"}, {r.Pruned, "rows dropped under a pruning record"}, {r.Unsampled, "rows not sampled"},
			{r.Unsequenced, "rows not in the tree yet"}} {
			if n.n > 0 {
				fmt.Fprintf(b, ", %d %s", n.n, n.what)
			}
		}
		fmt.Fprintln(b, ".")
	}
	if r.Bundle && !r.Partial && !r.Signed {
		fmt.Fprintln(b, "WARNING: no key of the log that is trusted signed the manifest: the rows are the log's, but who exported them, when, and up to where is only said.")
	}
	if r.Anchors > 0 {
		fmt.Fprintf(b, "It continues %d checkpoints known from elsewhere.\n", r.Anchors)
	}
	if r.Ahead > 0 {
		fmt.Fprintf(b, "WARNING: %d checkpoints from outside are newer than this export, which could not be held against them.\n", r.Ahead)
	}
	if r.Witnessed != nil {
		fmt.Fprintf(b, "Size %d was cosigned at %s by %s.\n", r.Witnessed.Size, r.Witnessed.At.Format(time.RFC3339), strings.Join(r.Witnessed.By, ", "))
	}
	unaccounted := 0
	for _, s := range r.Streams {
		if s.Unaccounted {
			if unaccounted++; unaccounted <= shown {
				fmt.Fprintf(b, "Unaccounted: stream %s gave no sign of life after record %d at %s, and did not stop.\n", s.Stream, s.Next-1, s.Last.Format(time.RFC3339))
			}
		}
	}
	for i, x := range r.Intents {
		if i < shown {
			fmt.Fprintf(b, "Open intent: event %s, stream %s, record %d at %s: no outcome is recorded.\n", x.Event, x.Stream, x.Seq, x.At.Format(time.RFC3339))
		}
	}
	if !r.Partial {
		fmt.Fprintf(b, "%d streams, %d of them unaccounted; %d open intents.\n", len(r.Streams), unaccounted, r.OpenIntents)
	}
	for i, f := range r.Findings {
		if i < shown {
			// A hostile bundle chooses its file names.
			fmt.Fprintf(b, "FINDING %s\n", strings.Map(func(r rune) rune {
				if unicode.IsControl(r) {
					return unicode.ReplacementChar
				}
				return r
			}, f.String()))
		}
	}
	if more := int64(len(r.Findings)-min(len(r.Findings), shown)) + r.More; more > 0 {
		fmt.Fprintf(b, "… and %d more findings.\n", more)
	}
	if r.Trust == TrustSelf {
		fmt.Fprintln(b, "WARNING: SELF-CONSISTENT ONLY. No key was given, so those that came with the evidence were used. Whoever made it may have made them:")
		fmt.Fprintln(b, "get the log's verifier key from its owner, and verify with it.")
	}
	if r.OK() {
		fmt.Fprintf(b, "OK (%.1f s)\n", r.Duration.Seconds())
	} else {
		fmt.Fprintf(b, "NOT OK: %d findings (%.1f s)\n", int64(len(r.Findings))+r.More, r.Duration.Seconds())
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("writing report: %w", err)
	}
	return nil
}
