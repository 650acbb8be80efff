"""Side by side in one run: this tunnel, `ssh -L` and autossh over the same real sshd."""
