"""How the processes of a stage are started."""
