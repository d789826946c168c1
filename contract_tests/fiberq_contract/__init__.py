"""The compliance suite for fiberq transports: ``pytest --pyargs fiberq_contract --transport NAME``.

NAME is an entry point in the group ``fiberq.transports``. Every test proves one or more of the numbered rules in
``RULES.md``; the run ends with a list of the rules that the transport breaks.
"""
