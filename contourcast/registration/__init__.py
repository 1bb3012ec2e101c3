"""Where the planning CT is today: translation, rigid, DIR-T, DIR-L, and how sure that is."""
