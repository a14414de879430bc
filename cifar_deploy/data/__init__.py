"""Images and labels: readers, the generated set, the on-device loader and augmentation."""
