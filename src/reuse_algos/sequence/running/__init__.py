"""Train what a sequence still lacks, safely and resumably."""
