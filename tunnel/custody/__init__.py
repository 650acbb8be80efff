"""The laptop's keys: how they get known to the droplet, are looked after, and change under load.

    enrol       by file: a request, and the answer that is taken
    join        in one go, by a login that the operator has (account; authorized for its file)
    keyfiles    which files are in use (the pointer), and whether they can be (passphrase, keystore)
    keyfacts    what is known of them here; registrar: what the other end says of them
    rotate      carries out the plan of `keys.rotation`, step by step, on record in the journal
    wayin       a fresh connection with given keys and no others, to prove them by
    care        what commands ask for; keeper: what `up` does by itself; notices: what ends soon
    lock        one rotation at a time, whatever crashes

The droplet's half is `gateway.keydesk` and `gateway.registrar`; docs/protocol.md is the contract.
"""
