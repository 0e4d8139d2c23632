package phi

// viewOf maps the name of a field view, as a permission grants it, to PHI classes (minimum necessary, 45 CFR
// 164.502(b), 164.514(d)). deidentified asks for deidentify on what is opened. An unknown name is not ok and grants
// nothing.
func viewOf(name string) (classes ClassSet, deidentified bool, ok bool) {
	const demographics = 1<<ClassIdentifier | 1<<ClassName | 1<<ClassBirthDate | 1<<ClassContact
	switch name {
	case "full":
		return AllClasses, false, true
	case "demographics":
		return demographics, false, true
	case "billing":
		// What a claim needs: who, and the coded clinical facts; no free text.
		return demographics | 1<<ClassClinical, false, true
	case "deidentified":
		return 1 << ClassClinical, true, true
	}
	return 0, false, false
}
