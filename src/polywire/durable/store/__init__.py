"""One file per database. A new one implements `Store` and passes `polywire.testing.stores.StoreSuite`."""
