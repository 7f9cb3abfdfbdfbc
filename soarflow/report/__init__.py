"""One page of what runs did: `runs` reads their folders, `figures` draws, `page` puts together."""
