"""Winner/loser pairs from scored samples (paper, section 2), and their counterparts for the methods without losers."""
