

gwns
appxØ


WasmPluginnsa"u@62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a (2Rejected:realm is no string@JäâÏªR@62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5aZ€âÏª`hp"«x
in127.0.0.1:80P *`
s"W


WasmPluginnsa@62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a (2'


WasmPluginnsait burns€âÏª