"""What may be learnt of a silo's images, bounded: private training, its accounts, and sums that hide their terms."""
