package fhir

import (
	"math/big"
	"strconv"
	"strings"
)

// amount is a number or quantity search value, [prefix]number[|system|code].
type amount struct {
	prefix       string
	value        *big.Rat
	half         *big.Rat // half a unit in the last digit given: what eq allows
	system, code string
	unit         bool // ||code: a code or a unit as written, of whatever system
}

func parseQuantity(kind, s string) (matcher, string) {
	parts := SplitSearchValue(s, '|')
	if len(parts) != 1 && (len(parts) != 3 || kind == "number") {
		return nil, "a quantity is number or number|system|code"
	}
	prefix, digits, problem := cutPrefix(SearchLiteral(parts[0]))
	if problem != "" {
		return nil, problem
	}
	a := amount{prefix: prefix}
	var ok bool
	if a.value, a.half, ok = decimal(digits); !ok {
		return nil, "the value is not a number"
	}
	if len(parts) == 3 {
		a.system, a.code = SearchLiteral(parts[1]), SearchLiteral(parts[2])
		a.unit = a.system == ""
	}
	return a, ""
}

// maxExponent bounds the work that a short number can cause.
const maxExponent = 60

// decimal reads a JSON number exactly, with half a unit of its last digit.
func decimal(s string) (value, half *big.Rat, ok bool) {
	if len(s) > 2*maxExponent {
		return nil, nil, false
	}
	check := scanner{in: []byte(s)}
	if check.number() != "" || check.pos != len(s) {
		return nil, nil, false
	}
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	e := 0
	if exponent != "" {
		var err error
		if e, err = strconv.Atoi(exponent); err != nil || e > maxExponent || e < -maxExponent {
			return nil, nil, false
		}
	}
	_, fraction, _ := strings.Cut(mantissa, ".")
	if value, ok = new(big.Rat).SetString(s); !ok {
		return nil, nil, false
	}
	half = big.NewRat(1, 2)
	power := new(big.Rat).SetInt(new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(e-len(fraction), len(fraction)-e))), nil))
	if e < len(fraction) {
		return value, half.Quo(half, power), true
	}
	return value, half.Mul(half, power), true
}

// interval is a value in a resource: a point, or open at a nil end ("<5", a Range without high).
type interval struct{ low, high *big.Rat }

// match follows http://hl7.org/fhir/R4/search.html#quantity: eq and ne allow for the precision given, the others compare
// exactly.
func (a amount) match(r *Resource, n int32, at *place) bool {
	var v interval
	switch at.kind {
	case "decimal", "integer", "positiveInt", "unsignedInt":
		point, _, ok := decimal(string(r.raw(n)))
		if !ok {
			return false
		}
		v = interval{point, point}
	case "Range":
		low, high := r.child(n, "low"), r.child(n, "high")
		if low == 0 && high == 0 || low != 0 && !a.unitOf(r, low, "Quantity") || high != 0 && !a.unitOf(r, high, "Quantity") {
			return false
		}
		v = interval{r.decimalAt(low), r.decimalAt(high)}
	default:
		point := r.decimalAt(n)
		if point == nil || !a.unitOf(r, n, at.kind) {
			return false
		}
		v = interval{point, point}
		switch r.childString(n, "comparator") {
		case "<", "<=":
			v.low = nil
		case ">", ">=":
			v.high = nil
		}
	}
	return a.compare(v)
}

// decimalAt is the value of a Quantity, nil when there is none.
func (r *Resource) decimalAt(n int32) *big.Rat {
	if n == 0 {
		return nil
	}
	c := r.child(n, "value")
	if c == 0 {
		return nil
	}
	v, _, ok := decimal(string(r.raw(c)))
	if !ok {
		return nil
	}
	return v
}

func (a amount) unitOf(r *Resource, n int32, kind string) bool {
	if kind == "Money" {
		return a.code == "" || r.childString(n, "currency") == a.code
	}
	if a.unit {
		return a.code == "" || r.childString(n, "code") == a.code || r.childString(n, "unit") == a.code
	}
	return (a.system == "" || r.childString(n, "system") == a.system) && (a.code == "" || r.childString(n, "code") == a.code)
}

func (a amount) compare(v interval) bool {
	above := v.high == nil || v.high.Cmp(a.value) > 0
	below := v.low == nil || v.low.Cmp(a.value) < 0
	equal := v.low != nil && v.high != nil &&
		v.low.Cmp(new(big.Rat).Sub(a.value, a.half)) >= 0 && v.high.Cmp(new(big.Rat).Add(a.value, a.half)) < 0
	switch a.prefix {
	case "ne":
		return !equal
	case "gt":
		return above
	case "lt":
		return below
	case "ge":
		return above || v.high.Cmp(a.value) == 0
	case "le":
		return below || v.low.Cmp(a.value) == 0
	case "sa":
		return v.low != nil && v.low.Cmp(a.value) > 0
	case "eb":
		return v.high != nil && v.high.Cmp(a.value) < 0
	}
	return equal
}
