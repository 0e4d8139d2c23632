package fhir

import (
	"math"
	"time"
)

// span is a stretch of time in microseconds since 1970 UTC, from from up to but without to: what a date of some precision
// stands for. Times without a zone are taken as UTC.
type span struct{ from, to int64 }

// always is unbounded on both sides.
func always() span { return span{math.MinInt64, math.MaxInt64} }

// precision says how much of a date and time there is.
type precision int

const (
	noMoment precision = iota
	toYear
	toMonth
	toDay
	toMinute
	toSecond
)

// moment reads YYYY[-MM[-DD[Thh:mm[:ss[.f…]][Z|±hh:mm]]]] strictly: existing days, hours to 23 (24:00 is not FHIR's),
// seconds to 60 for leap seconds. zoned tells whether a zone was given.
func moment(s string) (at span, p precision, zoned bool) {
	year, ok := decimalDigits(s, 0, 4)
	if !ok || year == 0 {
		return at, noMoment, false
	}
	if len(s) == 4 {
		return span{date(year, 1, 1), date(year+1, 1, 1)}, toYear, false
	}
	month, ok := decimalDigits(s, 5, 2)
	if !ok || s[4] != '-' || month < 1 || month > 12 {
		return at, noMoment, false
	}
	if len(s) == 7 {
		return span{date(year, month, 1), date(year, month+1, 1)}, toMonth, false
	}
	day, ok := decimalDigits(s, 8, 2)
	if !ok || s[7] != '-' || day < 1 || day > daysIn(year, month) {
		return at, noMoment, false
	}
	start := date(year, month, day)
	const day24 = 24 * 60 * 60 * 1e6
	if len(s) == 10 {
		return span{start, start + day24}, toDay, false
	}
	if s[10] != 'T' {
		return at, noMoment, false
	}
	ofDay, width, p, rest := clock(s[11:])
	if p == noMoment {
		return at, noMoment, false
	}
	offset, zoned, ok := zone(rest)
	if !ok {
		return at, noMoment, false
	}
	start += ofDay - offset
	return span{start, start + width}, p, zoned
}

// clock reads hh:mm[:ss[.f…]] and returns the microseconds, the width of what it says and the text after it.
func clock(s string) (at, width int64, p precision, rest string) {
	hour, ok1 := decimalDigits(s, 0, 2)
	minute, ok2 := decimalDigits(s, 3, 2)
	if !ok1 || !ok2 || s[2] != ':' || hour > 23 || minute > 59 {
		return 0, 0, noMoment, ""
	}
	at = int64(hour*60+minute) * 60e6
	s = s[5:]
	if s == "" || s[0] != ':' {
		return at, 60e6, toMinute, s
	}
	second, ok := decimalDigits(s, 1, 2)
	if !ok || second > 60 {
		return 0, 0, noMoment, ""
	}
	at += int64(second) * 1e6
	s = s[3:]
	if s == "" || s[0] != '.' {
		return at, 1e6, toSecond, s
	}
	width = 1e6
	i := 1
	for ; i < len(s) && isDigit(s[i]); i++ {
		if width > 1 { // finer than a microsecond makes no difference
			width /= 10
			at += int64(s[i]-'0') * width
		}
	}
	if i == 1 {
		return 0, 0, noMoment, ""
	}
	return at, width, toSecond, s[i:]
}

// zone reads Z, ±hh:mm (to 14:00) or nothing.
func zone(s string) (offset int64, zoned, ok bool) {
	switch s {
	case "":
		return 0, false, true
	case "Z":
		return 0, true, true
	}
	hour, ok1 := decimalDigits(s, 1, 2)
	minute, ok2 := decimalDigits(s, 4, 2)
	if len(s) != 6 || s[0] != '+' && s[0] != '-' || s[3] != ':' || !ok1 || !ok2 || minute > 59 || hour*60+minute > 14*60 {
		return 0, false, false
	}
	offset = int64(hour*60+minute) * 60e6
	if s[0] == '-' {
		offset = -offset
	}
	return offset, true, true
}

// decimalDigits reads exactly count digits at from.
func decimalDigits(s string, from, count int) (int, bool) {
	if len(s) < from+count {
		return 0, false
	}
	n := 0
	for i := from; i < from+count; i++ {
		if !isDigit(s[i]) {
			return 0, false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n, true
}

func date(year, month, day int) int64 {
	return time.Date(year, time.Month(month), day, 0, 0, 0, 0, time.UTC).UnixMicro()
}

func daysIn(year, month int) int {
	switch month {
	case 4, 6, 9, 11:
		return 30
	case 2:
		if year%4 == 0 && (year%100 != 0 || year%400 == 0) {
			return 29
		}
		return 28
	}
	return 31
}

// when is a date search value.
type when struct {
	prefix string
	span   span
}

func parseDate(s string) (matcher, string) {
	prefix, rest, problem := cutPrefix(SearchLiteral(s))
	if problem != "" {
		return nil, problem
	}
	at, p, _ := moment(rest)
	if p == noMoment {
		return nil, "the value is not a date"
	}
	return when{prefix, at}, ""
}

// cutPrefix takes a comparison off a value; eq when there is none. http://hl7.org/fhir/R4/search.html#prefix
func cutPrefix(s string) (prefix, rest, problem string) {
	if len(s) < 2 || isDigit(s[0]) || isDigit(s[1]) || s[0] == '-' || s[0] == '+' || s[0] == '.' {
		return "eq", s, ""
	}
	switch s[:2] {
	case "eq", "ne", "gt", "lt", "ge", "le", "sa", "eb":
		return s[:2], s[2:], ""
	}
	return "", "", "the comparison prefix is not supported"
}

// match compares two spans as the table of prefixes says: gt and lt ask whether the span beyond the search value meets the
// found one, ge and le include the search value's own span, sa and eb ask whether the found one lies wholly beyond.
func (w when) match(r *Resource, n int32, at *place) bool {
	v, ok := r.span(n, at.kind)
	if !ok {
		return false
	}
	equal := w.span.from <= v.from && v.to <= w.span.to
	switch w.prefix {
	case "ne":
		return !equal
	case "gt":
		return v.to > w.span.to
	case "lt":
		return v.from < w.span.from
	case "ge":
		return v.to > w.span.from
	case "le":
		return v.from < w.span.to
	case "sa":
		return v.from >= w.span.to
	case "eb":
		return v.to <= w.span.from
	}
	return equal
}

// span is the time that a date, a Period or the outer limits of a Timing cover.
func (r *Resource) span(n int32, kind string) (span, bool) {
	switch kind {
	case "Period":
		return r.period(n)
	case "Timing":
		return r.timing(n)
	}
	v, p, _ := moment(r.str(n))
	return v, p != noMoment
}

func (r *Resource) period(n int32) (span, bool) {
	v := always()
	start, hasStart, _ := moment(r.childString(n, "start"))
	end, hasEnd, _ := moment(r.childString(n, "end"))
	if hasStart != noMoment {
		v.from = start.from
	}
	if hasEnd != noMoment {
		v.to = end.to
	}
	return v, hasStart != noMoment || hasEnd != noMoment
}

func (r *Resource) timing(n int32) (span, bool) {
	v, ok := span{math.MaxInt64, math.MinInt64}, false
	if list := r.child(n, "event"); list != 0 {
		for c := list + 1; c < r.nodes[list].after; c = r.nodes[c].after {
			if e, p, _ := moment(r.str(c)); p != noMoment {
				v, ok = span{min(v.from, e.from), max(v.to, e.to)}, true
			}
		}
	}
	if repeat := r.child(n, "repeat"); repeat != 0 {
		if bounds := r.child(repeat, "boundsPeriod"); bounds != 0 {
			if b, found := r.period(bounds); found {
				v, ok = span{min(v.from, b.from), max(v.to, b.to)}, true
			}
		}
	}
	return v, ok
}
