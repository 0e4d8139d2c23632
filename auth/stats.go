package auth

import (
	"sync/atomic"
	"time"
)

// Stage is how far a token came before it was refused.
type Stage uint8

const (
	StageFormat        Stage = iota // not one token in its one spelling, or its header says what none may
	StageIssuer                     // nobody that is trusted gave it, or nobody can tell
	StageKey                        // its issuer has no such key
	StageSignature                  // forged
	StageClaims                     // genuine, and expired, too long-lived, meant for others, or not well formed
	StageIntrospection              // its issuer says so, or answers with claims that will not do
	StageRevoked                    // good once
	StageSession                    // of a session that was idle for too long, or is too old

	stages = iota
)

// String is the label of metrics.
func (s Stage) String() string {
	return [stages]string{"format", "issuer", "key", "signature", "claims", "introspection", "revoked", "session"}[s]
}

// progress is how far the verification of a token has come.
type progress struct {
	issuer *trusted // nil until it is known
	stage  Stage
}

func (p *progress) with(is *trusted) *progress {
	p.issuer = is
	return p
}

func (p *progress) refused(v *Verifier) {
	count := &v.strangers
	if p.issuer != nil {
		count = &p.issuer.refused
	}
	count[p.stage].Add(1)
}

// VerifierStats is a snapshot.
type VerifierStats struct {
	Hits, Misses, Refused uint64
	Strangers             [stages]uint64 // tokens refused before their issuer was known, by Stage
	Issuers               []IssuerStats  // as they were configured
}

// IssuerStats is a snapshot of one issuer.
type IssuerStats struct {
	Name        string         // IssuerConfig.Name
	Asked       bool           // its tokens are introspected, all of them; it has no keys
	Keys        int            // at hand
	KeysFetched time.Time      // when; zero: never
	KeyFailures uint64         // fetches that failed
	Refused     [stages]uint64 // its tokens that were refused, by Stage
}

// Stats returns the snapshot.
func (v *Verifier) Stats() VerifierStats {
	s := VerifierStats{Hits: v.hits.Load(), Misses: v.misses.Load(), Refused: v.refused.Load(), Strangers: load(&v.strangers)}
	for _, is := range v.issuers {
		i := IssuerStats{Name: is.Name, Asked: is.keys == nil, Refused: load(&is.refused)}
		if is.keys != nil {
			i.KeyFailures = is.keys.failed.Load()
			if set := is.keys.current.Load(); set != nil {
				i.Keys, i.KeysFetched = len(set.keys), set.fetched
			}
		}
		s.Issuers = append(s.Issuers, i)
	}
	return s
}

func load(counts *[stages]atomic.Uint64) (out [stages]uint64) {
	for i := range counts {
		out[i] = counts[i].Load()
	}
	return out
}
