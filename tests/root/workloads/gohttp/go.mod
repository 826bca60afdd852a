module wirespan/tests/gohttp

go 1.21
