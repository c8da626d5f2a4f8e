# Reads the output of `go test -v`: prints what failed tests have said, which tests were skipped and why, and the numbers.

/^=== (RUN|NAME|CONT|PAUSE) / { test = $3; next }

/^ *--- (PASS|FAIL|SKIP): / {
	result = substr($2, 1, 4)
	number[result]++
	if (result == "FAIL")
		failed = failed "\n" $0 "\n" said[$3]
	if (result == "SKIP") {
		sub(/.*\.go:[0-9]+: /, "", said[$3])
		sub(/\n.*/, "", said[$3])
		skipped[++skips] = $3
		why[skips] = said[$3]
	}
	delete said[$3]
	test = ""
	next
}

# The end of a package. A test of it that has said something but has no result has panicked or was ended.
/^(ok  |FAIL|\?   )\t/ {
	if ($1 == "FAIL")
		for (name in said)
			failed = failed "\n--- FAIL: " $2 " " name "\n" said[name]
	for (i = 1; i <= skips; i++) {
		if (!(why[i] in skip))
			reasons[++n] = why[i]
		if (package[why[i]] != $2)
			skip[why[i]] = skip[why[i]] "\n    " (package[why[i]] = $2) ":"
		skip[why[i]] = skip[why[i]] " " skipped[i]
	}
	skips = 0
	split("", said)
	test = ""
	next
}

!/^(PASS|FAIL|ok  .*|)$/ { said[test] = said[test] $0 "\n" }

END {
	if (failed != "")
		print "\nFAILED:" failed
	for (i = 1; i <= n; i++)
		print "\nSKIPPED: " reasons[i] skip[reasons[i]]
	printf "\n%d passed, %d failed, %d skipped\n", number["PASS"], number["FAIL"], number["SKIP"]
}
