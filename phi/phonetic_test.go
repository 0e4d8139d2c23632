package phi

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// TestSounds holds Double Metaphone to codes that its author's article and the usual implementations agree on, four sounds long.
func TestSounds(t *testing.T) {
	for name, want := range map[string]string{
		"Smith": "SM0 XMT", "Smyth": "SM0 XMT", "Schmidt": "XMT SMT", "Catherine": "K0RN KTRN", "Kathryn": "K0RN KTRN",
		"Stephen": "STFN", "Steven": "STFN", "Johnson": "JNSN ANSN", "Jonsen": "JNSN ANSN", "Thompson": "TMPS", "Wright": "RT",
		"Knight": "NT", "Michael": "MKL MXL", "Caesar": "SSR", "Xavier": "SF SFR", "José": "HS", "Cabrillo": "KPRL KPR",
		"Czerny": "SRN XRN", "Hugh": "H", "laugh": "LF", "Zhao": "J", "Wagner": "AKNR FKNR", "Filipowicz": "FLPT FLPF",
		"Arnow": "ARN ARNF", "Breaux": "PR", "Rogier": "RJ RJR", "island": "ALNT", "dumb": "TM", "edge": "AJ", "Edgar": "ATKR",
		"Gough": "KF", "Ghislane": "JLN", "tough": "TF", "sugar": "XKR SKR", "Resnais": "RSN RSNS", "pizza": "PS PTS",
		"thumb": "0M TM", "Bacher": "PKR", "Bertucci": "PRTX", "McClellan": "MKLL", "Thomas": "TMS", "Müller": "MLR", "Mueller": "MLR",
		"李": "", "": "",
	} {
		if got := strings.Join(soundsOf(name), " "); got != want {
			t.Errorf("%s sounds %q, want %q", name, got, want)
		}
	}
}

// Any text has sounds or none, in bounded length, and case and marks make no difference.
func TestSoundsOfAnything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z]{0,12}`)).Draw(t, "name")
		sounds := soundsOf(name)
		for _, s := range sounds {
			if s == "" || len(s) > soundLength {
				t.Fatalf("%q sounds %q", name, s)
			}
		}
		if again := soundsOf(strings.ToUpper(normalizeName(name)) + "\u0301"); normalizeName(name) == normalizeName(strings.ToUpper(normalizeName(name))) && !slices.Equal(sounds, again) {
			t.Fatalf("%q sounds %q, upper case %q", name, sounds, again)
		}
	})
}
