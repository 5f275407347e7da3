"""What programs call: runs in this process, measurements and saved models. Beside the apps, here both sides meet."""
