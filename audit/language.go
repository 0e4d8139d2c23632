package audit

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The query language of officers. A query is a list of clauses, all of which must hold:
//
//	agent:dr-rivera          the field has the value
//	action:R,C               one of the values
//	-interaction:read        not that
//	agent:dr-*               begins with it
//	"agent:a b,\"c\""        a value with blanks, commas or quotes stands in double quotes: agent:"a b"
//	outcome:>=4 duration:<1s numbers take >=, <=, > and <, and ranges 4..8 with both ends in it; a duration is microseconds, or 50ms
//	recorded:2026-11-01..2026-11-08   days, months, years (in UTC, whole), times of RFC 3339, or 24h and 7d for that long ago
//	missing "free words"     everything else is one phrase of text, looked for in the fields that hold no PHI

// MaxQueryText is the longest text of a query, in bytes.
const MaxQueryText = 4 << 10

// SyntaxError says where the text of a query cannot be understood, and why. It quotes nothing of the text: that may hold the id
// of a patient.
type SyntaxError struct {
	Position int      // in characters, from 0
	Problem  string   // in words
	Allowed  []string // what can stand there, when that is a short list
}

func (e *SyntaxError) Error() string {
	s := fmt.Sprintf("position %d: %s", e.Position, e.Problem)
	if len(e.Allowed) > 0 {
		s += "; allowed: " + strings.Join(e.Allowed, ", ")
	}
	return s
}

// recordedField is the one word of the language that is not a Field: it sets Query.From and Query.To.
const recordedField = "recorded"

// ParseQuery reads the text of a query; now is what "24h" counts back from. The result has neither After nor Limit. The error is
// a *SyntaxError.
func ParseQuery(text string, now time.Time) (Query, error) {
	p := queryParser{text: text, now: now.UTC().Truncate(time.Microsecond)}
	switch {
	case len(text) > MaxQueryText:
		return Query{}, p.fail(0, fmt.Sprintf("the query is longer than %d bytes", MaxQueryText))
	case !utf8.ValidString(text):
		return Query{}, &SyntaxError{Problem: "the query is not UTF-8"}
	}
	if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return Query{}, p.fail(i, "control character")
	}
	for p.blank(); p.at < len(p.text); p.blank() {
		if err := p.clause(); err != nil {
			return Query{}, err
		}
	}
	p.q.Text = strings.Join(p.words, " ")
	switch {
	case len(p.q.Terms) > maxTerms:
		return Query{}, p.fail(0, fmt.Sprintf("more than %d clauses", maxTerms))
	case len(p.q.Text) > maxValue:
		return Query{}, p.fail(0, fmt.Sprintf("more than %d bytes of text", maxValue))
	}
	if err := p.q.Validate(); err != nil {
		return Query{}, p.fail(0, "the query is malformed")
	}
	return p.q, nil
}

// queryParser walks over the text once.
type queryParser struct {
	text  string
	at    int // byte offset
	now   time.Time
	q     Query
	words []string // of free text
	dated bool     // recorded was given
}

func (p *queryParser) fail(at int, problem string, allowed ...string) error {
	return &SyntaxError{Position: utf8.RuneCountInString(p.text[:at]), Problem: problem, Allowed: allowed}
}

func (p *queryParser) blank() {
	for p.at < len(p.text) && p.text[p.at] == ' ' {
		p.at++
	}
}

// clause reads one clause with what follows its last value.
func (p *queryParser) clause() error {
	start := p.at
	not := p.text[p.at] == '-' && p.at+1 < len(p.text) && p.text[p.at+1] != ' '
	if not {
		p.at++
	}
	if p.text[p.at] == '"' {
		if not {
			return p.fail(start, "text cannot be excluded, fields can")
		}
		word, err := p.quoted()
		if err != nil {
			return err
		}
		if word != "" {
			p.words = append(p.words, word)
		}
		return p.end()
	}
	name := p.at
	for p.at < len(p.text) && !strings.ContainsRune(` :"`, rune(p.text[p.at])) {
		p.at++
	}
	switch {
	case p.at < len(p.text) && p.text[p.at] == ':':
		field := p.text[name:p.at]
		p.at++
		return p.field(start, name, field, not)
	case p.at < len(p.text) && p.text[p.at] == '"':
		return p.fail(p.at, "a quote inside a word")
	case not:
		return p.fail(start, "text cannot be excluded, fields can")
	}
	p.words = append(p.words, p.text[name:p.at])
	return nil
}

// end demands that a clause is over.
func (p *queryParser) end() error {
	if p.at < len(p.text) && p.text[p.at] != ' ' {
		return p.fail(p.at, "a blank is needed between clauses")
	}
	return nil
}

// quoted reads a string in double quotes, in which \" and \\ stand for themselves.
func (p *queryParser) quoted() (string, error) {
	start := p.at
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\\':
			p.at++
			if p.at == len(p.text) || p.text[p.at] != '"' && p.text[p.at] != '\\' {
				return "", p.fail(p.at-1, "a backslash stands before a quote or a backslash")
			}
			b.WriteByte(p.text[p.at])
		default:
			b.WriteByte(c)
		}
	}
	return "", p.fail(start, "the quote is not closed")
}

// operand is one of the values of a clause.
type operand struct {
	at     int
	text   string
	quoted bool
	prefix bool // ended in a star
}

// operands reads values up to the blank that ends the clause.
func (p *queryParser) operands() ([]operand, error) {
	var list []operand
	for {
		v := operand{at: p.at}
		if p.at < len(p.text) && p.text[p.at] == '"' {
			var err error
			if v.text, err = p.quoted(); err != nil {
				return nil, err
			}
			v.quoted = true
			if p.at < len(p.text) && p.text[p.at] == '*' {
				v.prefix = true
				p.at++
			}
		} else {
			for p.at < len(p.text) && !strings.ContainsRune(` ,"`, rune(p.text[p.at])) {
				p.at++
			}
			v.text, v.prefix = strings.CutSuffix(p.text[v.at:p.at], "*")
		}
		if v.text == "" && !v.quoted {
			return nil, p.fail(v.at, "a value is needed")
		}
		list = append(list, v)
		if p.at == len(p.text) || p.text[p.at] != ',' {
			return list, p.end()
		}
		p.at++
	}
}

func (p *queryParser) field(start, at int, name string, not bool) error {
	if name != recordedField && !slices.Contains(Fields(), Field(name)) {
		allowed := []string{recordedField}
		for _, f := range Fields() {
			allowed = append(allowed, string(f))
		}
		slices.Sort(allowed)
		return p.fail(at, "unknown field", allowed...)
	}
	values, err := p.operands()
	if err != nil {
		return err
	}
	if name == recordedField {
		return p.recorded(start, values, not)
	}
	if len(values) > maxValues {
		return p.fail(at, fmt.Sprintf("more than %d values", maxValues))
	}
	var terms []Term
	f := Field(name)
	kind, _ := f.Kind()
	if kind == NumberField {
		terms, err = p.numbers(f, values, not)
	} else {
		terms, err = p.texts(f, values, not)
	}
	if err != nil {
		return err
	}
	for i := range terms {
		if err := terms[i].validate(); err != nil {
			return p.fail(values[0].at, "the field does not take this value", taken(f, kind)...)
		}
	}
	p.q.Terms = append(p.q.Terms, terms...)
	return nil
}

// taken says what a field takes, where that can be said.
func taken(f Field, kind FieldKind) []string {
	switch {
	case f == FieldAllowed:
		return []string{"true", "false"}
	case f == FieldAction:
		return []string{"C", "R", "U", "D", "E"}
	case f == FieldOutcome:
		return []string{"-1", "0", "4", "8", "12"}
	case kind == UUIDField:
		return []string{"32 hexadecimal digits", "a UUID"}
	}
	return []string{fmt.Sprintf("%d bytes", maxValue)}
}

// texts is the term of a field of text: any of the values, or of the prefixes.
func (p *queryParser) texts(f Field, values []operand, not bool) ([]Term, error) {
	t := Term{Field: f, Op: OpIs, Not: not}
	for i, v := range values {
		if v.prefix != values[0].prefix {
			return nil, p.fail(values[i].at, "either all values of a clause end in a star or none")
		}
		for f == FieldPatient && strings.HasPrefix(v.text, "Patient/") { // as references have it
			v.text = v.text[len("Patient/"):]
		}
		t.Values = append(t.Values, v.text)
	}
	if values[0].prefix {
		t.Op = OpPrefix
	}
	return []Term{t}, nil
}

// comparisons are the signs that may stand before a number or a time, longer ones first.
var comparisons = []string{">=", "<=", ">", "<"}

func comparison(s string) (sign, rest string) {
	for _, sign := range comparisons {
		if rest, ok := strings.CutPrefix(s, sign); ok {
			return sign, rest
		}
	}
	return "", s
}

// numbers are the terms of a field of numbers: any of some, or one comparison, or a range.
func (p *queryParser) numbers(f Field, values []operand, not bool) ([]Term, error) {
	is := Term{Field: f, Op: OpIs, Not: not}
	for _, v := range values {
		sign, rest := comparison(v.text)
		low, high, ranged := strings.Cut(rest, "..")
		if (sign != "" || ranged) && len(values) > 1 {
			return nil, p.fail(v.at, "a comparison or a range stands alone")
		}
		if v.quoted || v.prefix || sign != "" && ranged {
			return nil, p.fail(v.at, "a number is needed", "4", ">=4", "<4", "4..8")
		}
		from, err := p.number(f, v.at, low)
		if err != nil {
			return nil, err
		}
		if ranged {
			to, err := p.number(f, v.at, high)
			if err != nil {
				return nil, err
			}
			switch {
			case not:
				return nil, p.fail(v.at, "a range cannot be excluded, a comparison can")
			case to < from:
				return nil, p.fail(v.at, "the range ends before it begins")
			}
			return []Term{{Field: f, Op: OpAtLeast, Values: []string{decimal(from)}}, {Field: f, Op: OpBelow, Values: []string{decimal(to + 1)}}}, nil
		}
		switch sign {
		case ">=":
			return []Term{{Field: f, Op: OpAtLeast, Not: not, Values: []string{decimal(from)}}}, nil
		case ">":
			return []Term{{Field: f, Op: OpAtLeast, Not: not, Values: []string{decimal(from + 1)}}}, nil
		case "<":
			return []Term{{Field: f, Op: OpBelow, Not: not, Values: []string{decimal(from)}}}, nil
		case "<=":
			return []Term{{Field: f, Op: OpBelow, Not: not, Values: []string{decimal(from + 1)}}}, nil
		}
		is.Values = append(is.Values, decimal(from))
	}
	return []Term{is}, nil
}

func decimal(n int64) string { return strconv.FormatInt(n, 10) }

// number reads a whole number; a duration may have a unit.
func (p *queryParser) number(f Field, at int, s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil && f == FieldDuration {
		var d time.Duration
		d, err = time.ParseDuration(s)
		n = d.Microseconds()
	}
	if err != nil || n > 1<<62 || n < -1<<62 {
		if f == FieldDuration {
			return 0, p.fail(at, "a duration is needed", "50000", "50ms", ">=1s", "10ms..20ms")
		}
		return 0, p.fail(at, "a number is needed", "4", ">=4", "<4", "4..8")
	}
	return n, nil
}

// recorded sets the bounds of the time of recording.
func (p *queryParser) recorded(start int, values []operand, not bool) error {
	v := values[0]
	switch {
	case not:
		return p.fail(start, "a time cannot be excluded")
	case p.dated:
		return p.fail(start, "recorded is given twice")
	case len(values) > 1 || v.quoted || v.prefix:
		return p.badTime(v.at)
	}
	p.dated = true
	sign, rest := comparison(v.text)
	low, high, ranged := strings.Cut(rest, "..")
	if ranged && (sign != "" || low == "" && high == "") {
		return p.badTime(v.at)
	}
	if ranged {
		var err error
		if low != "" {
			if p.q.From, _, err = p.moment(v.at, low); err != nil {
				return err
			}
		}
		if high != "" {
			if _, p.q.To, err = p.moment(v.at, high); err != nil {
				return err
			}
		}
		if low != "" && high != "" && p.q.To.Before(p.q.From) {
			return p.fail(v.at, "the range ends before it begins")
		}
		return nil
	}
	first, end, err := p.moment(v.at, rest)
	if err != nil {
		return err
	}
	switch sign {
	case ">=":
		p.q.From = first
	case ">":
		p.q.From = end
	case "<":
		p.q.To = first
	case "<=":
		p.q.To = end
	default:
		p.q.From = first
		if !first.Equal(end) {
			p.q.To = end
		} else if _, ok := ago(rest); !ok {
			return p.fail(v.at, "a single moment is no range", "2026-11-01", "2026-11-01..2026-11-08", ">=2026-11-01T08:00:00Z", "24h")
		}
	}
	return nil
}

func (p *queryParser) badTime(at int) error {
	return p.fail(at, "a day or a range of time is needed", "2026-11-01", "2026-11-01..2026-11-08", ">=2026-11-01T08:00:00Z", "24h", "7d")
}

// moment reads a time, as the half-open range that it names: a whole day, month or year, or one instant.
func (p *queryParser) moment(at int, s string) (first, end time.Time, err error) {
	if d, ok := ago(s); ok {
		t := p.now.Add(-d)
		return t, t, nil
	}
	for _, unit := range []struct {
		layout         string
		years, m, days int
	}{{"2006", 1, 0, 0}, {"2006-01", 0, 1, 0}, {time.DateOnly, 0, 0, 1}} {
		if t, err := time.Parse(unit.layout, s); err == nil {
			return p.sane(at, t, t.AddDate(unit.years, unit.m, unit.days))
		}
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return first, end, p.badTime(at)
	}
	t = t.UTC().Truncate(time.Microsecond)
	return p.sane(at, t, t)
}

// sane refuses times that no event has and some databases do not take.
func (p *queryParser) sane(at int, first, end time.Time) (time.Time, time.Time, error) {
	if first.Year() < 1970 || end.Year() > 9000 {
		return first, end, p.fail(at, "years from 1970 to 8999 are taken")
	}
	return first, end, nil
}

// ago reads how long ago: a number of minutes, hours, days or weeks.
func ago(s string) (time.Duration, bool) {
	if len(s) < 2 {
		return 0, false
	}
	unit, ok := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}[s[len(s)-1]]
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 16)
	return time.Duration(n) * unit, ok && err == nil && time.Duration(n)*unit < 40*366*24*time.Hour
}

// FormatQuery writes a query in the language: ParseQuery reads the same terms, text and times from it. After, Forward and Limit
// are no part of it.
func FormatQuery(q Query) string {
	var clauses []string
	for _, t := range q.Terms {
		var b strings.Builder
		if t.Not {
			b.WriteByte('-')
		}
		b.WriteString(string(t.Field) + ":")
		switch t.Op {
		case OpAtLeast:
			b.WriteString(">=" + t.Values[0])
		case OpBelow:
			b.WriteString("<" + t.Values[0])
		default:
			for i, v := range t.Values {
				if i > 0 {
					b.WriteByte(',')
				}
				b.WriteString(literal(v))
				if t.Op == OpPrefix {
					b.WriteByte('*')
				}
			}
		}
		clauses = append(clauses, b.String())
	}
	if !q.From.IsZero() || !q.To.IsZero() {
		clauses = append(clauses, recordedField+":"+moment(q.From)+".."+moment(q.To))
	}
	if q.Text != "" {
		clauses = append(clauses, quote(q.Text))
	}
	return strings.Join(clauses, " ")
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// literal writes a value, in quotes when it has a character that means something.
func literal(v string) string {
	if v == "" || strings.ContainsAny(v, ` ,"*`) {
		return quote(v)
	}
	return v
}

func quote(s string) string { return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"` }
