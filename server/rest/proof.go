package rest

import (
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
)

// inclusionJSON is an event's place in the log's tree.
type inclusionJSON struct {
	Sequenced  bool     `json:"sequenced"` // false: not yet; it takes seconds
	Index      int64    `json:"index"`     // of the leaf
	Size       int64    `json:"size"`      // of the tree that the checkpoint signs
	Root       string   `json:"root,omitempty"`
	Hashes     []string `json:"hashes"`               // RFC 6962 audit path, from the leaf's sibling up; hex
	Checkpoint string   `json:"checkpoint,omitempty"` // signed note (https://c2sp.org/tlog-checkpoint)
	Proof      string   `json:"proof,omitempty"`      // all of it in one text (https://c2sp.org/tlog-proof), for chartkeep audit verify
}

// prove makes the inclusion proof of an event; nil while it is not in the tree. Who sees aliases gets the bare leaf: what it is
// made of names people.
func (c *call) prove(s *audit.Stored) (*audit.Proof, error) {
	if c.s.cfg.Tree == nil {
		return nil, nil
	}
	p, err := audit.Prove(c.ctx, c.s.cfg.Tree, s.Stream, &s.Row)
	switch {
	case errors.Is(err, audit.ErrNotSequenced):
		return nil, nil
	case err != nil:
		return nil, unavailable(err)
	case c.aliased:
		p = p.Redacted()
	}
	return p, nil
}

func (c *call) inclusion(s *audit.Stored) (inclusionJSON, error) {
	j := inclusionJSON{Hashes: []string{}}
	p, err := c.prove(s)
	if err != nil || p == nil {
		return j, err
	}
	checkpoint, err := newCheckpointJSON(p.Checkpoint)
	if err != nil {
		return j, err
	}
	j.Sequenced, j.Index, j.Size, j.Root = true, p.Index, checkpoint.Size, checkpoint.Root
	j.Checkpoint, j.Proof = checkpoint.Note, string(p.Text())
	for _, h := range p.Hashes {
		j.Hashes = append(j.Hashes, hex.EncodeToString(h[:]))
	}
	return j, nil
}

// proof answers with the proof of one event as a file that verifies by itself.
func (c *call) proof() error {
	if c.s.cfg.Tree == nil {
		return notConfigured()
	}
	stored, err := c.inspected()
	if err != nil {
		return err
	}
	p, err := c.prove(stored)
	if err != nil {
		return err
	}
	if p == nil {
		return &refusal{status: http.StatusConflict, code: "conflict", text: "the event is not in the tree yet; it will be within seconds"}
	}
	h := &c.http.Response().Header
	h.SetContentType("text/plain; charset=utf-8")
	h.Set("Content-Disposition", `attachment; filename="`+stored.Event.ID.String()+`.tlog-proof"`)
	c.http.Response().SetBodyRaw(p.Text())
	return nil
}

// checkpointJSON is a signed checkpoint.
type checkpointJSON struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"` // hex
	Note   string `json:"note"` // with all signatures and cosignatures
}

// storedCheckpoint reads a checkpoint of our own storage. Its signatures are for whoever gets it to verify.
func storedCheckpoint(note []byte) (audit.Checkpoint, error) {
	text, _, _ := strings.Cut(string(note), "\n\n")
	return audit.ParseCheckpoint(text + "\n")
}

func newCheckpointJSON(note []byte) (checkpointJSON, error) {
	c, err := storedCheckpoint(note)
	if err != nil {
		return checkpointJSON{}, unavailable(err)
	}
	return checkpointJSON{c.Origin, c.Size, hex.EncodeToString(c.Root[:]), string(note)}, nil
}

// checkpoints lists signed checkpoints, smallest first, and the newest.
func (c *call) checkpoints() error {
	if c.s.cfg.Tree == nil {
		return notConfigured()
	}
	asked, err := c.parameters("after", "limit")
	if err != nil {
		return err
	}
	after := int64(0)
	if v, ok := asked["after"]; ok {
		if after, err = strconv.ParseInt(v, 10, 64); err != nil || after < 0 {
			return faulty(&fault{text: "the size of a tree is needed", parameter: "after", position: -1})
		}
	}
	limit, err := upTo(audit.MaxPage, asked, "limit", 50)
	if err != nil {
		return err
	}
	if _, err := c.recordLook(nil, audit.Entity{Type: "AuditEvent"}); err != nil {
		return err
	}
	page := struct {
		Newest      *checkpointJSON  `json:"newest"`      // null before the first
		Checkpoints []checkpointJSON `json:"checkpoints"` // of trees larger than after
		Next        string           `json:"next"`        // after of the next page; "" on the last
	}{Checkpoints: []checkpointJSON{}}
	newest, err := c.s.cfg.Tree.Checkpoint(c.ctx)
	if err != nil {
		return unavailable(err)
	}
	if newest != nil {
		j, err := newCheckpointJSON(newest)
		if err != nil {
			return err
		}
		page.Newest = &j
	}
	notes, err := c.s.cfg.Tree.Checkpoints(c.ctx, after, limit)
	if err != nil {
		return unavailable(err)
	}
	for _, n := range notes {
		j, err := newCheckpointJSON(n)
		if err != nil {
			return err
		}
		page.Checkpoints = append(page.Checkpoints, j)
	}
	if len(notes) == limit {
		page.Next = strconv.FormatInt(page.Checkpoints[limit-1].Size, 10)
	}
	return c.sendJSON(http.StatusOK, page)
}
