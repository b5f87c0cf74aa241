"""Known vulnerabilities of what is installed, as osv.dev tells them."""
