"""A trained run put to use: rebuilt without its data (`run`), asked about images (`rows`), its answers written (`files`)."""
