"""Everything that `just test` runs; a package, so that `trial tests` finds what is written as trial cases."""
