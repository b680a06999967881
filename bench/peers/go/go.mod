module longshore.dev/bench/echo

go 1.22
