package phi

import (
	"strings"

	"github.com/tidwall/gjson"
)

// reduceAddress keeps of an address what Safe Harbor allows (45 CFR 164.514(b)(2)(i)(B)): the State, and the first three digits
// of the ZIP code, or 000 where few people live. An address outside the United States goes whole, and so does a State that is
// none in the sense of 45 CFR 160.103.
func reduceAddress(raw []byte) ([]byte, bool) {
	address := gjson.ParseBytes(raw)
	switch strings.ToUpper(address.Get("country").String()) {
	case "", "US", "USA", "UNITED STATES", "UNITED STATES OF AMERICA":
	default:
		return nil, false
	}
	var kept []string
	if state := stateCode(address.Get("state").String()); state != "" {
		kept = append(kept, `"state":"`+state+`"`)
	}
	if zip := zip3(address.Get("postalCode").String()); zip != "" {
		kept = append(kept, `"postalCode":"`+zip+`"`)
	}
	if len(kept) == 0 {
		return nil, false
	}
	return []byte("{" + strings.Join(kept, ",") + "}"), true
}

// zip3 returns the first three digits of a ZIP code (five digits, or nine with or without the hyphen), or 000; "" for anything
// else.
func zip3(postalCode string) string {
	digits := strings.Replace(postalCode, "-", "", 1)
	if len(digits) != 5 && len(digits) != 9 || strings.Trim(digits, "0123456789") != "" {
		return ""
	}
	if zip := digits[:3]; !strings.Contains(fewPeople+nobody, zip) {
		return zip
	}
	return "000"
}

// fewPeople are the three-digit ZIP areas with 20,000 people or fewer in any of these counts, and some that come near:
//
//   - Census 2000 (ZCTAs): the 17 areas of the HHS guidance on de-identification of 26 November 2012, "When can ZIP codes be
//     included in de-identified information?"
//   - Census 2010 (ZCTAs): 036 059 102 203 205 369 556 692 821 823 878 879 884 893
//   - beyond these, areas of single large mailers and of about 20,000 people: 753 772 994 999
//
// Areas that have grown since stay listed: to say too little breaks nothing. Lists that change are the covered entity's to
// follow (THREATS.md).
const fewPeople = "036 059 063 102 203 556 692 790 821 823 830 831 878 879 884 890 893 " +
	"205 369 753 772 994 999 "

// nobody are the three-digit prefixes for which the Census Bureau has no ZCTA: not assigned, the armed forces', or those of
// agencies and single mailers (USPS Labeling List L002).
const nobody = "000 001 002 003 004 005 055 090 091 092 093 094 095 096 097 098 099 192 202 204 213 269 311 332 340 343 345 348 353 " +
	"375 399 419 428 429 459 509 517 518 519 529 533 536 552 555 568 569 578 579 589 621 632 642 643 649 659 663 682 694 695 " +
	"696 697 698 699 702 709 715 732 733 742 771 817 818 819 839 842 848 849 854 858 861 862 866 867 868 869 872 876 885 886 " +
	"887 888 889 892 896 899 909 929 938 942 962 963 964 965 966 987 "

// stateCode returns the code of one of the States, of which the District of Columbia, Puerto Rico, the Virgin Islands and Guam
// are part (45 CFR 160.103); "" for anything else, whatever an address says there.
func stateCode(name string) string {
	name = strings.ToUpper(strings.TrimSpace(name))
	for _, state := range strings.Split(states, ",") {
		if code, full, _ := strings.Cut(state, " "); name == code || name == full {
			return code
		}
	}
	return ""
}

const states = "AL ALABAMA,AK ALASKA,AZ ARIZONA,AR ARKANSAS,CA CALIFORNIA,CO COLORADO,CT CONNECTICUT,DE DELAWARE,DC DISTRICT OF COLUMBIA," +
	"FL FLORIDA,GA GEORGIA,GU GUAM,HI HAWAII,ID IDAHO,IL ILLINOIS,IN INDIANA,IA IOWA,KS KANSAS,KY KENTUCKY,LA LOUISIANA,ME MAINE," +
	"MD MARYLAND,MA MASSACHUSETTS,MI MICHIGAN,MN MINNESOTA,MS MISSISSIPPI,MO MISSOURI,MT MONTANA,NE NEBRASKA,NV NEVADA," +
	"NH NEW HAMPSHIRE,NJ NEW JERSEY,NM NEW MEXICO,NY NEW YORK,NC NORTH CAROLINA,ND NORTH DAKOTA,OH OHIO,OK OKLAHOMA,OR OREGON," +
	"PA PENNSYLVANIA,PR PUERTO RICO,RI RHODE ISLAND,SC SOUTH CAROLINA,SD SOUTH DAKOTA,TN TENNESSEE,TX TEXAS,UT UTAH,VT VERMONT," +
	"VI VIRGIN ISLANDS,VA VIRGINIA,WA WASHINGTON,WV WEST VIRGINIA,WI WISCONSIN,WY WYOMING"
