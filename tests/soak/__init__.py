"""
The soak: whole engines through random stories, over a disk that loses power again and again.

``story`` knows what must hold, ``generate`` makes up what happens, ``tally`` counts what was reached when the power
went, and ``python -m soak`` runs stories at length.
"""
