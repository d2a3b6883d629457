"""What compare.py and sweep.py share: entrants, runs in their own processes, statistics, tables and the report page."""
