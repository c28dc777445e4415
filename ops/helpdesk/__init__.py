"""The generated support-desk corpus of `data=helpdesk`: `python -m ops.helpdesk` writes data/raw/helpdesk."""
