package auth

import (
	"hash/maphash"
	"sync"
	"time"
)

const (
	alarmEvery = time.Hour // about the same
	alarmSlots = 512
)

// alarms tells of each thing once in alarmEvery. It remembers a fixed number of things: of two that fall on one place, each may be told
// more often.
type alarms struct {
	tell func(Alarm)
	seed maphash.Seed

	mu   sync.Mutex
	told [alarmSlots]struct {
		about uint64
		at    time.Time
	}
}

// alarmed is what makes two alarms the same.
type alarmed struct {
	policy            int64
	refused           bool
	subject, one, two string
}

func (a *alarms) raise(x Alarm) {
	if a.tell == nil {
		return
	}
	key := alarmed{one: x.Conflict.Role, two: x.Conflict.Other, refused: x.Refused != nil}
	if x.Refused != nil {
		key.policy = x.Policy
	}
	if x.Principal != nil {
		key.subject = x.Principal.Subject
	}
	sum := maphash.Comparable(a.seed, key)
	now := time.Now()
	a.mu.Lock()
	slot := &a.told[sum%alarmSlots]
	again := slot.about == sum && now.Sub(slot.at) < alarmEvery
	if !again {
		slot.about, slot.at = sum, now
	}
	a.mu.Unlock()
	if !again {
		a.tell(x)
	}
}
