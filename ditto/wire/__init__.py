"""Generated from proto/ by scripts/gen_stubs.sh; do not edit."""
