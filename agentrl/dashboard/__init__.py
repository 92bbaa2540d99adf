"""A local web page over a folder of runs. It only reads (and notes which alarms somebody has seen). No torch."""
