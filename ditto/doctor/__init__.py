"""What is well and what is not: of this machine, of a client's or a server's files, of the servers and between them."""
