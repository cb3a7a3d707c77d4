"""The report of a run (``report.html``) and of a comparison (``compare.html``): one file each that opens offline."""
