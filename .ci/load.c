/* Load the native library named on the command line, and print the instruction sets that it would use. */
#include <stdio.h>

#if defined(_WIN32)
#include <windows.h>
#define OPEN(path) LoadLibraryA(path)
#define FIND(library, name) GetProcAddress(library, name)
#else
#include <dlfcn.h>
#define OPEN(path) dlopen(path, RTLD_NOW)
#define FIND(library, name) dlsym(library, name)
#endif

int main(int count, char **arguments) {
    void *library = count == 2 ? (void *)OPEN(arguments[1]) : NULL;
    const char *(*sets)(void) = NULL;
    if (library) *(void **)&sets = (void *)FIND(library, "gpt2_instruction_sets");
    if (!sets) return 1;
    printf("%s\n", sets());
    return 0;
}
