"""Programs, and what runs them: the dealer's job, a party's job, the plain interpreter."""
