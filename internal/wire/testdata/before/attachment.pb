


WasmPluginnsa"u@62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a HPZùÿÿÿÿÿÿÿÿ€âÏªbP?hpx‚<Šr’{"a":1}š
Abš
C¢	proxy_logªK
Gsha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a²http*¦
Gsha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5aYoci://r.example/a@sha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a