# Reads the consoles of guests (NAME.console each) and prints what each test came to: a row for each test, a column for each
# guest, a table for each program and pass.
function base(path) { sub(/.*\//, "", path); sub(/\.console$/, "", path); return path }
FNR == 1 {
  guest = base(FILENAME)
  guests[++guest_count] = guest
  section = ""
  if (length(guest) > width) width = length(guest)
}
/^guest-tests: begin / {
  section = $3 " " $4
  if (!(section in known)) { known[section] = 1; sections[++section_count] = section }
  next
}
/^guest-tests: end / { section = ""; next }
section == "" { next }
/^test [^ ]+ \.\.\. / && $4 !~ /^ignored/ {
  test = $2
  if (!((section, test) in seen)) {
    seen[section, test] = 1
    tests[section, ++test_count[section]] = test
    if (length(test) > longest) longest = length(test)
  }
  verdict[section, test, guest] = $4 == "ok" ? "ok" : $4
  next
}
/^---- [^ ]+ stdout ----$/ { told = $2; next }
/^skipped: / && told != "" { verdict[section, told, guest] = "skipped"; why[substr($0, 10)] = 1; told = "" }
END {
  if (width < 7) width = 7
  for (s = 1; s <= section_count; s++) {
    section = sections[s]
    split(section, part, " ")
    printf "\n%s, %s\n", part[1], part[2] == "root" ? "as root" : "with the capabilities of the DaemonSet alone"
    printf "  %-*s", longest, ""
    for (g = 1; g <= guest_count; g++) printf "  %-*s", width, guests[g]
    print ""
    for (t = 1; t <= test_count[section]; t++) {
      test = tests[section, t]
      printf "  %-*s", longest, test
      for (g = 1; g <= guest_count; g++) {
        v = verdict[section, test, guests[g]]
        printf "  %-*s", width, v == "" ? "-" : v
      }
      print ""
    }
  }
  for (reason in why) print "\nskipped: " reason
}
