"""What a judge file may say: the sections (`sections`), one class per mode (`modes`), and how a file is read (`load`)."""
