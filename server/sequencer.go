package main

import (
	"fmt"
	"strings"

	"github.com/chartkeep/chartkeep/audit"
	"github.com/chartkeep/chartkeep/server/postgres"
)

// checkpoints names who signs the audit trail's checkpoints, who cosigns them and where they are kept.
type checkpoints struct {
	CheckpointKey     []string `help:"File with a key that signs the audit trail's checkpoints, see: chartkeep audit keygen. Give the old and the new one for a while to change keys." placeholder:"FILE" group:"Audit trail" sep:"none"`
	Witness           []string `help:"Witness that cosigns checkpoints, see: chartkeep audit witness; its verifier key and URL, or a file with one a line." placeholder:"VKEY@URL|FILE" group:"Audit trail" sep:"none"`
	Anchor            []string `help:"Where checkpoints are kept out of administrators' reach: a directory, or an object-locked bucket." placeholder:"DIR|s3://BUCKET/PREFIX?endpoint=URL&region=NAME&years=N" group:"Audit trail" sep:"none"`
	AnchorCredentials string   `help:"File with the bucket's access key id and secret, each on a line." placeholder:"FILE" group:"Audit trail"`
}

// read reads the files that the flags name.
func (f *checkpoints) read(s *settings) error {
	for _, file := range f.CheckpointKey {
		key, err := readCheckpointKey(file)
		if err != nil {
			return err
		}
		s.keys = append(s.keys, key)
	}
	for _, value := range f.Witness {
		witnesses, err := witnessAddresses(value)
		if err != nil {
			return err
		}
		s.witnesses = append(s.witnesses, witnesses...)
	}
	for _, value := range f.Anchor {
		a, err := openAnchor(value, f.AnchorCredentials)
		if err != nil {
			return err
		}
		s.anchors = append(s.anchors, a)
	}
	return nil
}

func readCheckpointKey(file string) (audit.LogKey, error) {
	secret, err := readSecret(file)
	if err != nil {
		return audit.LogKey{}, err
	}
	key, err := audit.NewLogKey(secret)
	if err != nil {
		return audit.LogKey{}, usage("--checkpoint-key %s holds no log's key; make one with: chartkeep audit keygen --origin NAME --out FILE", file)
	}
	return key, nil
}

// witnessAddresses reads VKEY@URL, or a file of such lines.
func witnessAddresses(value string) (list []audit.WitnessAddress, err error) {
	lines, _ := listed(value) // what is no file is an address
	for _, line := range lines {
		at := strings.LastIndex(line, "@http")
		if at < 0 {
			return nil, usage("--witness %s: a witness is VKEY@URL", value)
		}
		w := audit.WitnessAddress{Verifier: line[:at], URL: line[at+1:]}
		if _, err := audit.NewCosignatureVerifier(w.Verifier); err != nil {
			return nil, usage("--witness %s: the verifier key is malformed", value)
		}
		list = append(list, w)
	}
	return list, nil
}

// newSequencer makes the deployment's sequencer; nil without a key, as in a verb that only works on records: what it records is
// sequenced by those who have one.
func newSequencer(s *settings, db *postgres.DB, r *rooms) (*audit.Sequencer, error) {
	if len(s.keys) == 0 {
		return nil, nil
	}
	q, err := audit.NewSequencer(audit.SequencerConfig{
		Storage: db.Tree(), Keys: s.keys, Witnesses: s.witnesses, Anchors: s.anchors, Logger: r.logger,
		Alert: func(desc string) { r.alarm("sequencer", desc) },
	})
	if err != nil {
		return nil, fmt.Errorf("configuring checkpoints: %w", err)
	}
	return q, nil
}
