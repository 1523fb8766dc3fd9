"""`ditto serve`: a client as a local HTTP server, for the applications of one user.

It holds the client's keys and sees texts and answers in the clear, so it runs on the machine of whoever asks. `app`
puts routes together, one module each (`openai`, `tei`, `health`, `page`); `state` is what they ask.
"""
